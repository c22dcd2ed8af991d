"""The small ViT that stands in for a foundation model: its program, and its folder as a teacher of features."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mokd_det.data.digits import generate
from mokd_det.modeling import FeatureTeacher

PROGRAM = Path(__file__).parents[2] / "docs" / "make_digits_vit.py"


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    return runpy.run_path(str(PROGRAM))["main"]


def test_its_folder_is_a_teacher_of_features(main, tmp_path, capsys) -> None:
    generate("digits", tmp_path, counts={"train": 4, "val": 4, "test": 1})
    output = tmp_path / "vit"
    assert main(["--scenes", str(tmp_path / "digits"), "--output", str(output), "--iterations", "1"]) == 0
    assert "accuracy on" in capsys.readouterr().out
    teacher = FeatureTeacher(source=str(output), stride=8).eval()
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        teacher([{"image": image, "height": 64, "width": 64}])


def test_scenes_that_were_not_made_are_named(main, tmp_path, capsys) -> None:
    assert main(["--scenes", str(tmp_path), "--output", str(tmp_path / "vit")]) == 2
    said = capsys.readouterr().err
    assert "train.json" in said and "make_digits.py digits" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "vit").exists()
