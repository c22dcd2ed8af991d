"""Which losses form an objective is a matter of the configuration alone (Remark A.1: three of them)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from omegaconf import OmegaConf

from mokd_det.config import TrainSettings, load_config
from mokd_det.engine import MoKDTrainer
from mokd_det.engine.build import build_trainer
from tests.configs.test_configs import random_batches

ROOT = Path(__file__).parents[2] / "configs"
QUICKSTART = str(ROOT / "quickstart" / "mokd.py")
TWO = "objectives={distill: ['loss_distill_*'], task: ['loss_ce*', 'loss_bbox*', 'loss_giou*']}"
THREE = "objectives={distill: ['loss_distill_*'], cls: ['loss_ce*'], box: ['loss_bbox*', 'loss_giou*']}"


def one_step(*overrides: str) -> tuple[MoKDTrainer, dict[str, float]]:
    cfg = load_config(QUICKSTART, ["model.teacher_checkpoint=", *overrides])
    cfg.dataloader.train = L(random_batches)(classes=10, size=64)
    seed_all_rng(0)
    trainer = build_trainer(cfg, TrainSettings.from_config(cfg.train))
    trainer.iter = 0
    with EventStorage() as trainer.storage:
        trainer.run_step()
        return trainer, {name: value for name, (value, _) in trainer.storage.latest().items()}


def test_the_coco_config_differs_in_the_objectives_alone() -> None:
    two, three = (
        OmegaConf.to_container(load_config(str(ROOT / "COCO" / f"mokd_vidt_nano{suffix}.py")))
        for suffix in ("", "_three_objectives")
    )
    assert {name for name in three if two[name] != three[name]} == {"objectives", "train"}
    assert {name for name in two["train"] if two["train"][name] != three["train"][name]} == {"output_dir"}
    assert two["objectives"]["distill"] == three["objectives"]["distill"]
    assert two["objectives"]["task"] == three["objectives"]["cls"] + three["objectives"]["box"]


@pytest.mark.parametrize("balancer", ["Amortized", "ClosedForm"])
def test_two_and_three_objectives_train_the_same_model(balancer: str) -> None:
    chosen = f"balancer={{_target_: mokd_det.balancing.{balancer}}}"
    runs = {}
    for names, grouping in ((("distill", "task"), TWO), (("distill", "cls", "box"), THREE)):
        trainer, latest = one_step(chosen, grouping)
        assert trainer.objectives.names == names
        weights = [latest[f"pi/{name}"] for name in names]
        assert sum(weights) == pytest.approx(1.0) and min(weights) >= 0.0
        runs[len(names)] = trainer, latest
    (two, of_two), (three, of_three) = runs[2], runs[3]
    losses = {name for name in of_two if name.startswith("loss_")}
    assert {name: of_three[name] for name in losses} == {name: of_two[name] for name in losses}
    parameters = dict(three.module.named_parameters())
    changed = [
        name for name, value in two.module.named_parameters() if not torch.equal(value, parameters[name])
    ]
    assert changed, "another grouping is another step"
    if balancer == "ClosedForm":
        for pair in ("distill_cls", "distill_box", "cls_box"):
            assert -1.0 <= of_three[f"cosine/{pair}"] <= 1.0


def test_with_fixed_weights_the_grouping_changes_nothing() -> None:
    fixed = "balancer={_target_: mokd_det.balancing.FixedWeights}"
    (two, _), (three, _) = one_step(fixed, TWO), one_step(fixed, THREE)
    for (name, value), other in zip(two.module.named_parameters(), three.module.parameters(), strict=True):
        torch.testing.assert_close(value.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
