"""The paper's tables and figures from runs that were never trained: their configs and made-up evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.config import LazyConfig
from PIL import Image

from mokd_det.tools import paper
from mokd_det.tools.paper import main
from tests.report.tiny_run import ROOT

AP = {"AP": 40.0, "AP50": 60.0, "AP75": 43.0, "APs": 23.0, "APm": 42.0, "APl": 55.0}


def finished(
    root: Path, name: str, config: str, values: dict[str, float], overrides: tuple[str, ...] = ()
) -> Path:
    """A run's directory with two evaluations, the first one ten below."""
    directory = root / name
    directory.mkdir(parents=True)
    cfg = LazyConfig.apply_overrides(LazyConfig.load(str(ROOT / "configs" / f"{config}.py")), list(overrides))
    LazyConfig.save(cfg, str(directory / "config.yaml"))
    (directory / "student_final.pth").touch()
    task = "classification" if "top1" in values else "bbox"
    period = int(cfg.train.eval_period)
    with (directory / "metrics.json").open("w") as file:
        for iteration, shift in ((period - 1, 10), (2 * period, 0)):
            record = {f"{task}/{key}": value - shift for key, value in values.items()}
            file.write(json.dumps({"iteration": iteration, **record}) + "\n")
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Output folder and text of the tool on a few runs."""
    root, output = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("paper")
    finished(root, "nano0", "COCO/vidt_nano", AP)
    finished(root, "nano1", "COCO/vidt_nano", {key: value + 1 for key, value in AP.items()})
    finished(root, "mokd", "COCO/mokd_vidt_nano", {key: value + 3 for key, value in AP.items()})
    finished(root, "mokd_tiny", "COCO/mokd_vidt_tiny_from_small", {**AP, "AP": 46.9})
    finished(root, "vkd_ti", "ImageNet/vkd_deit_tiny", {"top1": 78.3})
    cifar = ("choice.pair=wrn_40_2_wrn_40_1", "choice.method=review_kd")
    finished(root, "cifar", "CIFAR100/distill", {"top1": 75.1}, cifar)
    finished(root, "own", "COCO/mokd_vidt_nano", AP, ("model.method.n=1024",))
    (finished(root, "running", "COCO/vidt_tiny", AP) / "student_final.pth").unlink()
    (finished(root, "bare", "COCO/vidt_tiny", AP) / "config.yaml").unlink()
    assert main([str(root), "--output", str(output)]) == 0
    return output, (output / "paper.md").read_text()


def row(text: str, label: str) -> list[str]:
    """The cells of the first row with this label."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_cells_are_the_last_values_of_the_configs_runs(made) -> None:
    text = made[1]
    assert row(text, "ViDT-nano alone") == [
        "40.5 ± 0.7 (2)", "60.5 ± 0.7 (2)", "43.5 ± 0.7 (2)", "23.5 ± 0.7 (2)", "42.5 ± 0.7 (2)", "55.5 ± 0.7 (2)",
        "15.7 M", "–",
    ]  # fmt: skip
    assert row(text, "ViDT-nano, MoKD")[:3] == ["43.0", "63.0", "46.0"]
    assert row(text, "DeiT-tiny, VkD") == ["78.3", "5.9 M"]
    # mokd_vidt_nano.py again, though one file says what the other has by default.
    assert row(text, "+ high-dimensional alignment") == ["43.0", "63.0", "46.0"]
    assert row(text, "+ subspace learning") == ["–"] * 3
    table4 = text[text.index("## Table 4") :]
    assert row(table4, "alone") == ["", "40.5 ± 0.7 (2)", "", "–"]
    assert row(table4, "MoKD") == ["–", "43.0", "46.9", "–"]
    assert row(text, "ReviewKD") == ["–", "75.1", "–", "–", "–", "–"]


def test_what_cannot_be_made_is_named(made) -> None:
    text = made[1]
    assert "Not made, no finished run of: `COCO/vidt_base`" in text and "`COCO/vkd_vidt_nano`" in text
    assert "CivT and DearKD: not implemented" in text and "--fps measures it" in text
    assert "running: not finished" in text and "bare: not finished" in text
    assert "own: no config of the tables has these networks" in text and "mokd: no config" not in text


def test_pictures(made) -> None:
    names = sorted(path.name for path in made[0].glob("*.png"))
    expected = ["figure1a", "figure1b", "figure_6_c2_tiny", "figure_c1_nano"]
    assert names == [f"{name}.png" for name in expected]
    for name in names:
        with Image.open(made[0] / name) as image:
            assert min(image.size) >= 400


def test_frames_per_second_are_measured_on_the_runs_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "SIZE", (64, 64))
    section = LazyConfig.load(str(ROOT / "configs" / "quickstart" / "student.py")).model
    assert paper._frames_per_second(section) > 0.1


def test_folders_without_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "there is no metrics.json in it" in capsys.readouterr().err
