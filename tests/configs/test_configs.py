"""Every shipped config is built by the real code and takes one training step on small random images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mokd_det.config import TrainSettings, load_config
from mokd_det.distillation import Distiller
from mokd_det.engine.build import build_trainer

ROOT = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path for folder in ("COCO", "quickstart") for path in (ROOT / folder).glob("*.py"))
# test_method_configs.py has those that differ from mokd_vidt_nano.py by method and balancer only
OTHER_METHODS = ("token_matching", "vkd", "projector", "dto_kd")
CONFIGS = [path for path in CONFIGS if path.name != "common.py" and not path.stem.startswith(OTHER_METHODS)]
# of students with 80 classes: the published counts less 11 rows of 257 numbers in each of seven class heads
COUNTS = {"nano": 15_728_677, "tiny": 37_962_901, "small": 60_465_061, "base": 99_959_635}


def random_batches(classes: int, size: int) -> Iterator[list[dict]]:
    """Endless batches of two random images with one object each."""
    generator = torch.Generator().manual_seed(0)
    while True:
        batch = []
        for index in range(2):
            instances = Instances((size, size))
            instances.gt_boxes = Boxes(torch.tensor([[4.0, 8.0, 40.0, 50.0]]))
            instances.gt_classes = torch.randint(0, classes, (1,), generator=generator)
            image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
            batch.append({"image": image, "instances": instances, "image_id": index})
        yield batch


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config(path: Path) -> None:
    cfg = load_config(str(path), ["train.init_checkpoint="])
    distills = "teacher" in cfg.model
    if distills:
        cfg.model.teacher_checkpoint = ""
    classes = (cfg.model.student if distills else cfg.model).num_classes
    cfg.dataloader.train = L(random_batches)(classes=classes, size=64)
    settings = TrainSettings.from_config(cfg.train)
    torch.manual_seed(0)
    trainer = build_trainer(cfg, settings)
    model = trainer.module
    student = model.student if distills else model
    if path.parent.name == "COCO":
        variant = path.stem.split("_")[2 if distills else 1]
        total = sum(p.numel() for p in student.parameters())
        assert total == COUNTS[variant] - 7 * 11 * 257
        assert settings.max_iter == 50 * 7392 and cfg.optimizer.lr == 1e-4
    multiplier = instantiate(cfg.lr_multiplier)
    assert multiplier(1.0 - 1e-6) < 0.05 and multiplier(0.5) > multiplier(1.0 - 1e-6)
    assert isinstance(model, Distiller) is path.stem.startswith(("mokd", "dkd"))
    terms = (
        {"tckd", "nckd"} if path.stem.startswith("dkd") else {"patch", "neck", "head"} if distills else set()
    )
    if path.parent.name == "COCO" and variant != "nano":
        # What a step does is the same file's for every backbone: nano's show it. Here the parts must fit each other.
        with torch.no_grad():
            losses = model.train()(next(random_batches(classes, 64)))
        assert {f"loss_distill_{term}" for term in terms} <= set(losses) and "loss_ce" in losses
        assert all(bool(value.isfinite()) for value in losses.values())
        return
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with EventStorage() as storage:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 1
        model.train()
        trainer.run_step()
        latest = {name: value for name, (value, _) in storage.latest().items()}
    assert all(torch.isfinite(p).all() for p in model.parameters())
    moved = [
        name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])
    ]
    assert len(moved) > 0.9 * len(before)
    assert {f"loss_distill_{term}" for term in terms} <= set(latest)
    if path.stem.startswith("mokd"):
        assert sum(latest[f"pi/{name}"] for name in cfg.objectives) == pytest.approx(1.0)


def test_the_main_config_reads_in_under_sixty_lines() -> None:
    assert len((ROOT / "COCO" / "mokd_vidt_nano.py").read_text().splitlines()) < 60
