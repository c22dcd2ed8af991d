"""Detectors that nobody edited, distilled by config: Detectron2's, torchvision's, and across architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig

from mokd_det.config import TrainSettings, load_config
from mokd_det.distillation import Distiller
from mokd_det.engine.build import build_trainer
from mokd_det.errors import IncompatibleModelsError
from tests.configs.test_configs import ROOT, random_batches

CONFIGS = sorted((ROOT / "detectors").glob("*.py"))
TASKS = {
    "faster_rcnn_r50_to_r18_fpn": {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"},
    "retinanet_r50_to_r18_fpn": {"loss_cls", "loss_box_reg"},
    "vidt_small_to_torchvision_fcos": {"loss_classification", "loss_bbox_regression", "loss_bbox_ctrness"},
}


def step(cfg: DictConfig, size: int = 64, classes: int = 80) -> tuple[Distiller, dict[str, float]]:
    cfg.model.teacher_checkpoint = ""
    cfg.dataloader.train = L(random_batches)(classes=classes, size=size)
    settings = TrainSettings.from_config(cfg.train)
    torch.manual_seed(0)
    trainer = build_trainer(cfg, settings)
    with EventStorage() as storage:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 1
        trainer.model.train()
        trainer.run_step()
        return trainer.module, {name: value for name, (value, _) in storage.latest().items()}


def fewer_proposals(cfg: DictConfig) -> DictConfig:
    for who in ("student", "teacher"):
        node = cfg.model[who]
        if "proposal_generator" in node:
            node.proposal_generator.post_nms_topk = (20, 20)
            node.roi_heads.batch_size_per_image = 16
    return cfg


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_step(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
    cfg = fewer_proposals(load_config(str(path)))
    model, latest = step(cfg)
    terms = {name for name in latest if name.startswith("loss_")}
    assert terms == {*TASKS[path.stem], "loss_distill_patch"}
    assert latest["pi/distill"] + latest["pi/task"] == pytest.approx(1.0)
    gradients = [p.grad for p in model.student.parameters() if p.requires_grad]
    assert sum(g is not None and bool(g.abs().sum() > 0) for g in gradients) > 0.8 * len(gradients)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    # The exported student is a student that was never distilled.
    alone = instantiate(cfg.model.student)
    assert list(model.student.state_dict()) == list(alone.state_dict())
    batch = next(random_batches(classes=80, size=64))
    with torch.no_grad():
        found = model.eval()([{**batch[0], "height": 128, "width": 128}])
    assert found[0]["instances"].image_size == (128, 128)
    multiplier = instantiate(cfg.lr_multiplier)
    assert multiplier(0.0) < 0.01 and multiplier(0.5) == 1.0 and multiplier(1.0 - 1e-6) == pytest.approx(0.01)


def across(**student_tap: Any) -> DictConfig:
    """Detectron2's RetinaNet from the quick start's ViDT, through the patch tokens."""
    cfg = load_config(str(ROOT / "detectors" / "retinanet_r50_to_r18_fpn.py"))
    cfg.model.teacher = load_config(str(ROOT / "quickstart" / "mokd.py")).model.teacher
    cfg.model.taps = dict(patch=dict(student=dict(path="backbone", **student_tap), teacher="patch"))
    return cfg


def test_a_vidt_teaches_a_retinanet_that_pads_differently() -> None:
    # 72 pixels: ViDT's maps have 9, 5, 3 and 2 cells, those of the pyramid, which pads to 96, have 12, 6, 3 and 2
    model, latest = step(across(strides=[8, 16, 32, 64]), size=72)
    assert latest["loss_distill_patch"] > 0 and set(model.method.heads) == {
        f"patch_stride{stride}" for stride in (8, 16, 32, 64)
    }
    assert {head.n for head in model.method.heads.values()} == {320}  # 256 + 64 channels


def test_levels_that_the_teacher_lacks_are_named_before_training() -> None:
    with pytest.raises(IncompatibleModelsError, match="the same strides"):
        step(across())


def test_a_foundation_model_teaches_by_its_features() -> None:
    pytest.importorskip("transformers")
    cfg = load_config(str(ROOT / "examples" / "foundation_vidt_nano.py"))
    cfg.train.init_checkpoint = ""
    cfg.model.teacher.source = dict(
        model_type="dinov2",
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        patch_size=4,
        image_size=16,
    )
    model, latest = step(cfg)
    assert latest["loss_distill_patch"] > 0
    assert model.method.projections["patch_stride32"].weight.shape == (16, 256)


@pytest.mark.parametrize(
    ("name", "teacher", "terms"),
    [("cross_kd", "fcos_teacher", {"class", "box"}), ("ld", "d_fine_teacher", {"sides"})],
)
def test_small_pairs_train_the_methods_that_a_vidt_cannot(name: str, teacher: str, terms: set[str]) -> None:
    if name == "ld":
        pytest.importorskip("transformers")
    cfg = load_config(str(ROOT / "digits_pairs" / f"{name}.py"))
    assert cfg.model.teacher == load_config(str(ROOT / "digits_pairs" / f"{teacher}.py")).model
    model, latest = step(cfg, classes=3)
    found = {key.removeprefix("loss_distill_") for key in latest if key.startswith("loss_distill_")}
    assert found == terms
    # The last layers of D-FINE's corners start at 0: all distributions are equal in the first step.
    assert all((latest[f"loss_distill_{term}"] > 0) == (name != "ld") for term in terms)
    assert all(torch.isfinite(p).all() for p in model.parameters())
