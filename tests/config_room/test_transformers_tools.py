"""Every tool on Hugging Face detectors, by its own entry point, on one small D-FINE distilled from an RT-DETRv2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mokd_det.checkpoint import load_file as load_checkpoint
from mokd_det.modeling import TransformersDetector
from mokd_det.tools import (
    analyze_model,
    check_dataset,
    compare_methods,
    demo,
    eval_tide,
    export,
    report,
    train_net,
    visualize_attention,
)
from tests.config_room.test_own_data import CATEGORIES, CONFIGS, catalogs, paths, run  # noqa: F401
from tests.config_room.test_own_data import folder as data_folder  # noqa: F401
from tests.engine.helpers import loggers_restored
from tests.modeling.tiny_transformers import tiny_config

transformers = pytest.importorskip("transformers")

CONFIG = CONFIGS / "mokd_transformers.py"


@pytest.fixture(scope="module")
def settings(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:  # noqa: F811
    """Overrides of the shipped configuration: two folders of weights, the data, everything small."""
    root = tmp_path_factory.mktemp("weights")
    for name, kind in (("student", "DFine"), ("teacher", "RTDetrV2")):
        torch.manual_seed(0)
        config = tiny_config(f"{kind}ForObjectDetection")
        TransformersDetector(config, image_size=64).save_pretrained(root / name)
    return [
        "images.side=64",
        "dataloader.train.num_workers=0",
        "dataloader.test.num_workers=0",
        "data.total_batch_size=2",
        "train.max_iter=3",
        "train.checkpointer.period=2",
        f"model.student.source={root}/student",
        f"model.teacher.source={root}/teacher",
        *paths(data_folder),
    ]


@pytest.fixture(scope="module")
def trained(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run")
    run(CONFIG, output, *settings)
    return output


def ok(main, *arguments: object) -> None:
    with loggers_restored():
        assert main([str(argument) for argument in arguments]) == 0


def refused(main, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that it ends with."""
    capsys.readouterr()
    with loggers_restored():
        assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_check_and_dry_run(
    settings: list[str], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    ok(check_dataset.main, data_folder / "train.json", data_folder / "train")
    arguments = [
        "--config-file",
        CONFIG,
        *settings,
        "train.device=cpu",
        f"train.output_dir={tmp_path / 'dry'}",
    ]
    ok(train_net.main, *arguments, "--dry-run")
    assert "No error found; nothing was written." in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()


def test_a_resumed_run_ends_bit_equal(settings: list[str], trained: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "model_0000001.pth"):
        shutil.copy(trained / name, tmp_path / name)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    log = run(CONFIG, tmp_path, *settings, "--resume")
    assert "Training iterations 2 to 2" in log
    ours, theirs = (load_file(root / "student_final" / "model.safetensors") for root in (tmp_path, trained))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_trained_folder_is_transformers_own(trained: Path, data_folder: Path) -> None:  # noqa: F811
    """student_final in plain transformers, on an image file, gives what the checkpoint gives here."""
    folder = trained / "student_final"
    names = {file.name for file in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "preprocessor_config.json"}
    plain = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    ours = TransformersDetector(
        plain.config.to_dict(), class_names=list(plain.config.id2label.values()), image_size=64
    )
    ours.load_state_dict(load_checkpoint(trained / "student_final.pth")["model"])
    file = data_folder / "val" / "0.png"
    image = Image.open(file).convert("RGB")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    with torch.no_grad():
        found = ours.eval()([{"image": pixels}])[0]["instances"]
        inputs = processor(images=image, return_tensors="pt")
        output = plain(**inputs)
        theirs = processor.post_process_object_detection(output, 0.0, [image.size[::-1]])[0]
    torch.testing.assert_close(found.scores, theirs["scores"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.pred_boxes.tensor, theirs["boxes"], rtol=1e-4, atol=1e-3)
    assert torch.equal(found.pred_classes, theirs["labels"])


def test_looking_at_the_trained_model(
    trained: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    image = data_folder / "val" / "0.png"
    ok(eval_tide.main, "--run", trained, "--output", tmp_path / "tide")
    ok(demo.main, image, "--run", trained, "--output", tmp_path / "demo", "--threshold", 0)
    found = json.loads((tmp_path / "demo" / "detections.json").read_text())
    assert {row["category_id"] for row in found} <= set(CATEGORIES)
    for view in ("objects", "layers"):
        ok(visualize_attention.main, image, "--run", trained, "--output", tmp_path / view, "--view", view,
           "--threshold", 0)  # fmt: skip
        assert [file.suffix for file in (tmp_path / view).iterdir() if file.suffix != ".lock"] == [".png"]
    ok(analyze_model.main, "--config-file", trained / "config.yaml", "--size", 64, 64, "--device", "cpu", "--warmup", 0,
       "--repeats", 1, "--output", tmp_path / "costs.json")  # fmt: skip
    ok(report.main, trained, "--output", tmp_path / "report.html", "--pictures", 1)
    assert "screw" in (tmp_path / "report.html").read_text()


def test_export(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--config-file", trained / "config.yaml", "--weights", trained / "student_final.pth")
    ok(export.main, tmp_path / "student.safetensors", *files)
    assert load_file(tmp_path / "student.safetensors")


@pytest.mark.slow
def test_compare_with_a_teachers_cache(settings: list[str], tmp_path: Path) -> None:
    overrides = [s for s in settings if not s.startswith("train.")]
    once = "dataloader.train.mapper.augmentation=[]"
    ok(compare_methods.main, "--config", CONFIG, "--methods", "none", "mokd", "--replicates", 2, "--teacher-cache",
       "--jobs", 1, "--output", tmp_path, "--set", *overrides, once, "train.max_iter=2", "train.eval_period=0",
       "train.device=cpu")  # fmt: skip
    rows: Sequence[str] = (tmp_path / "comparison.csv").read_text().splitlines()
    assert len(rows) == 3 and any("mokd" in row.lower() for row in rows)


BAD = [
    (["model.student.source=nowhere"], "source='nowhere' is no folder"),
    (["model.teacher.source={root}"], "has no config.json"),
    (["images.side=100"], "multiples of 32, such as 96"),
    (["model.student.on_class_mismatch=error"], "class 0 is 'cat', not 'screw'"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=["folder", "config", "size", "classes"])
def test_bad_input_is_one_line_and_status_2(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    arguments = [
        "--config-file",
        CONFIG,
        *settings,
        "train.device=cpu",
        f"train.output_dir={tmp_path / 'out'}",
    ]
    line = refused(train_net.main, capsys, *arguments, *(text.format(root=tmp_path) for text in change))
    assert message in line
