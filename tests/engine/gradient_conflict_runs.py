"""Trainings with the conflict hook, importable in a fresh process for ``test_gradient_conflict.py``."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from torch import Tensor

from mokd_det.balancing import Amortized, ClosedForm, FixedWeights
from mokd_det.engine import MoKDTrainer
from mokd_det.engine.gradient_conflict import GradientConflict
from tests.engine.helpers import make_trainer
from tests.engine.toy import ToyDetector, ToyLoader

BALANCERS = {
    "fixed": lambda: FixedWeights({"cls": 3.0, "box": 1.0}),
    "amortized": Amortized,
    "closed_form": ClosedForm,
}
KINDS = (
    "cosine/",
    "raw_inner_product/",
    "raw_norm_ratio/",
    "log_inner_product/",
    "log_norm_ratio/",
    "conflict_share/",
    "alignment/",
    "update_alignment/",
)


def measured(trainer: MoKDTrainer) -> dict[str, list[tuple[float, int]]]:
    """What the hook has stored: name → [(value, iteration)]."""
    return {
        name: history.values()
        for name, history in trainer.storage.histories().items()
        if name.startswith(KINDS) and name.count("/") == 2
    }


def trained(
    balancer: str, *, total_batch_size: int, accumulate: int = 1, hook: bool = True, iterations: int = 3
) -> tuple[MoKDTrainer, dict[str, Tensor]]:
    """A training without what depends on how samples fall into batches, on this process's share of the data."""
    torch.manual_seed(0)
    trainer = make_trainer(
        BALANCERS[balancer](),
        model=create_ddp_model(
            ToyDetector(dropout=0.0, norm=False), broadcast_buffers=False, device_ids=None
        ),
        loader=ToyLoader(total_batch_size),
        accumulate=accumulate,
    )
    if hook:
        trainer.register_hooks([GradientConflict(1)])
    trainer.train(0, iterations)
    return trainer, {name: value.detach().clone() for name, value in trainer.module.state_dict().items()}


def train_on_each_rank(directory: str) -> None:
    """Every balancer, two micro-batches, with the hook and without."""
    results: dict[str, Any] = {}
    for balancer in BALANCERS:
        trainer, with_hook = trained(balancer, total_batch_size=4, accumulate=2)
        _, without = trained(balancer, total_batch_size=4, accumulate=2, hook=False)
        results[balancer] = {"measured": measured(trainer), "with": with_hook, "without": without}
    torch.save(results, f"{directory}/rank{comm.get_rank()}.pt")
