"""Hints name commands that exist from where the user stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from mokd_det import command_hint
from mokd_det.command_hint import command

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "docs", Path("/")])
def test_the_path_leads_to_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    python, path = shlex.split(command("tools/replay_batch.py"))
    assert python == "python" and Path(path).resolve() == ROOT / "tools" / "replay_batch.py"
    assert Path(path).is_absolute() == (folder == ROOT / "docs")


def test_without_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command_hint, "_CHECKOUT", tmp_path)
    assert command("tools/train_net.py") == "python -m mokd_det train"
    assert command("datasets/make_digits.py") == "python -m mokd_det digits"
