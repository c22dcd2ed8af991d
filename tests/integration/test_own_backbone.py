"""The example configs with a timm backbone: distilled from a Swin ViDT by the tool, saved, evaluated alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate

from mokd_det.checkpoint import load_file
from mokd_det.config import load_config
from mokd_det.data import digits, register_coco_format
from mokd_det.engine import argument_parser
from mokd_det.modeling.backbone import TimmRAM
from mokd_det.tools.train_net import train
from tests.engine.helpers import loggers_restored

ROOT = Path(__file__).parents[2]
STUDENT = ROOT / "configs" / "examples" / "vidt_convnext.py"
MOKD = ROOT / "configs" / "examples" / "mokd_vidt_convnext.py"


def run_tool(config: Path, output: Path, *arguments: str) -> Path:
    """The training in this process, which has the data registered."""
    overrides = ("dataloader.train.dataset=own_backbone_train", "dataloader.test.dataset=own_backbone_val")
    parsed = argument_parser("test").parse_intermixed_args(
        [
            "--config-file",
            str(config),
            f"train.output_dir={output}",
            "train.device=cpu",
            *overrides,
            *arguments,
        ]
    )
    with loggers_restored():
        train(parsed)
    return output


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own_backbone")
    digits.generate("digits", root, counts={"train": 16, "val": 4, "test": 1})
    for split in ("train", "val"):
        folder = root / "digits"
        register_coco_format(
            f"own_backbone_{split}", digits.annotation_file(folder, split), digits.image_folder(folder, split)
        )
    torch.manual_seed(0)
    teacher = instantiate(load_config(str(MOKD)).model.teacher)
    torch.save({"model": teacher.state_dict()}, root / "teacher.pth")
    return run_tool(
        MOKD,
        root / "mokd",
        f"model.teacher_checkpoint={root / 'teacher.pth'}",
        "train.max_iter=3",
        "train.log_period=1",
        "dataloader.train.total_batch_size=4",
    )


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_student_on_timm_learns_from_a_swin_teacher(distilled: Path) -> None:
    steps = [line for line in metrics(distilled) if "total_loss" in line]
    assert [line["iteration"] for line in steps] == [0, 1, 2]
    assert {f"loss_distill_{tap}" for tap in ("patch", "neck", "head")} <= set(steps[-1])
    assert all(line["pi/distill"] + line["pi/task"] == pytest.approx(1.0) for line in steps)
    assert any("bbox/AP" in line for line in metrics(distilled)), "the last model is evaluated"


def test_the_saved_student_is_the_alone_configs(distilled: Path) -> None:
    alone = instantiate(load_config(str(STUDENT)).model)
    assert isinstance(alone.backbone, TimmRAM)
    weights = load_file(distilled / "student_final.pth")["model"]
    assert {key: value.shape for key, value in weights.items()} == {
        key: value.shape for key, value in alone.state_dict().items()
    }


def test_the_alone_config_evaluates_it(distilled: Path) -> None:
    out = run_tool(
        STUDENT,
        distilled.parent / "eval",
        "--eval-only",
        f"train.init_checkpoint={distilled / 'student_final.pth'}",
        "model.backbone.weights=''",
    )
    during = next(line["bbox/AP"] for line in reversed(metrics(distilled)) if "bbox/AP" in line)
    assert json.loads((out / "results.json").read_text())["bbox"]["AP"] == pytest.approx(during, abs=1e-9)


def test_what_the_page_says_can_be_overridden() -> None:
    cfg = load_config(
        str(STUDENT),
        [
            "model.backbone.host=pvt_v2_b0",
            "model.backbone.frozen_batch_norm=true",
            "model.backbone.host_options={drop_path_rate: 0.1}",
            "model.backbone.cross_strides=[16,32]",
            "optimizer.params.backbone_lr=1e-5",
            "train.ddp.find_unused_parameters=true",
        ],
    )
    backbone = instantiate(cfg.model.backbone)
    assert backbone.channels == (64, 160, 256, 64)
    assert [stage.patch_proj is not None for stage in backbone.stages] == [False, True, True]
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    groups = {group["name"]: group for group in instantiate(cfg.optimizer).param_groups}
    assert groups["backbone_decay"]["lr"] == groups["backbone_no_decay"]["lr"] == 1e-5
    undecayed = {id(p) for p in groups["backbone_no_decay"]["params"]}
    assert {id(model.backbone.det_token), id(model.backbone.det_pos_embed)} <= undecayed


@pytest.mark.parametrize("config", [STUDENT, MOKD], ids=lambda path: path.stem)
def test_a_config_reads_in_under_forty_lines(config: Path) -> None:
    assert len(config.read_text().splitlines()) < 40
