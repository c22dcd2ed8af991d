"""A run of several processes whose input is wrong says so once, before any of them is started."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mokd_det.checkpoint.origins import origin_of
from mokd_det.data import register_coco_format
from mokd_det.engine import argument_parser
from mokd_det.engine import launch as launch_function
from mokd_det.engine.preflight import check_run
from mokd_det.errors import CheckpointError, DatasetError

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart"
CIFAR = ROOT / "configs" / "CIFAR100" / "distill.py"


@pytest.fixture(autouse=True)
def registered():
    register_coco_format("preflight", "nowhere/a.json", "nowhere", hint="write it with: make a")
    yield
    DatasetCatalog.remove("preflight")
    MetadataCatalog.remove("preflight")


def started(*_: object) -> int:
    raise AssertionError("processes were started")


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (QUICKSTART / "student.py", ["train.max_itr=3"], "unknown config key 'train.max_itr'; did you mean"),
        (QUICKSTART / "student.py", ["train.seed=-1"], "train.seed is -1; it must be 0 or more"),
        (
            QUICKSTART / "student.py",
            ["train.init_checkpoint=none.pth"],
            "checkpoint 'none.pth' does not exist",
        ),
        (
            QUICKSTART / "student.py",
            ["--eval-only", "train.init_checkpoint=checkpoints/vidt_nano_150.pth"],
            "checkpoint 'checkpoints/vidt_nano_150.pth' does not exist; an official ViDT: https://github.com/naver-ai",
        ),
        (
            QUICKSTART / "mokd.py",
            ["model.teacher_checkpoint=gone/student_final.pth"],
            "teacher checkpoint 'gone/student_final.pth' does not exist; the training with train.output_dir=gone",
        ),
        (
            QUICKSTART / "student.py",
            ["dataloader.train.dataset=coco_2017_tain"],
            "unknown data set 'coco_2017_tain'",
        ),
        (
            QUICKSTART / "student.py",
            ["dataloader.train.dataset=preflight"],
            "data set file nowhere/a.json does not exist; write it with: make a",
        ),
        (
            CIFAR,
            ["choice.method=none", "dataloader.train.dataset.root=nowhere"],
            "CIFAR-100 is not at 'nowhere/cifar-100-python': download",
        ),
    ],
)
def test_a_mistake_is_said_before_processes_start(
    config: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(sys.modules["mokd_det.engine.launch"], "_launch_many", started)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    args = argument_parser("").parse_intermixed_args(
        ["--config-file", str(config), "--num-gpus", "4", *arguments]
    )
    assert launch_function(started, args.num_gpus, args=(args,), check=check_run) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_run_that_continues_needs_no_initial_weights(tmp_path: Path) -> None:
    opts = [
        f"train.output_dir={tmp_path}",
        "train.init_checkpoint=none.pth",
        "dataloader.train.dataset=preflight",
    ]
    command = ["--config-file", str(QUICKSTART / "student.py"), "--resume", *opts]
    args = argument_parser("").parse_intermixed_args(command)
    with pytest.raises(CheckpointError, match=r"none\.pth"):
        check_run(args)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(DatasetError, match=r"nowhere/a\.json"):
        check_run(args)


@pytest.mark.parametrize(
    ("path", "origin"),
    [
        ("checkpoints/swin_nano_patch4_window7_224.pth", "github.com/naver-ai/vidt"),
        ("checkpoints/swin_base_patch4_window7_224_22k.pth", "github.com/microsoft/Swin-Transformer"),
        ("x/regnety_160.deit_in1k.safetensors", "https://huggingface.co/timm/regnety_160.deit_in1k "),
        ("x/cait_s24_224.fb_dist_in1k.safetensors", "https://huggingface.co/timm/cait_s24_224.fb_dist_in1k "),
        ("checkpoints/resnet56_vanilla/ckpt_epoch_240.pth", "mdistiller"),
        ("output/a/model_0004999.pth", "train.output_dir=output/a writes it"),
        ("mine.pth", ""),
        ("my_vidt_base_50.pth.old", ""),
    ],
)
def test_where_a_file_comes_from(path: str, origin: str) -> None:
    found = origin_of(path)
    assert origin in found and bool(found) == bool(origin)


def test_every_published_file_that_a_config_names_has_an_origin() -> None:
    named = {
        name
        for path in (ROOT / "configs").rglob("*.py")
        for name in re.findall(r'"(checkpoints/[^"{]+)"', path.read_text())
    }
    assert len(named) > 10
    assert not {name for name in named if not origin_of(name)}
