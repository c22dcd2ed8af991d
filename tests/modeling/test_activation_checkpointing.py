"""Activation checkpointing: the same numbers to the last bit, from less memory."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import create_ddp_model
from detectron2.utils.events import EventStorage
from torch import Tensor

from mokd_det.balancing import Amortized, Balancer, ClosedForm, Objectives
from mokd_det.distillation import Distiller, MoKD
from mokd_det.engine import MoKDTrainer
from mokd_det.modeling import ViDT
from tests.forks import spawn
from tests.modeling.test_vidt import item, small_vidt

BATCH = [item(64, 48, seed=0), item(40, 72, seed=1)]


def vidt(enabled: bool) -> ViDT:
    """With dropout and stochastic depth, whose draws a second run must repeat."""
    backbone = {"drop_path": 0.5, "activation_checkpointing": enabled}
    return small_vidt(
        backbone=backbone, transformer={"dropout": 0.2, "activation_checkpointing": enabled}
    ).train()


def step(model: ViDT) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Losses, gradients, and the bytes that the graph keeps."""
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = model(BATCH)
    # After the forward and before the backward others draw too.
    torch.rand(3)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients, sum(kept.values())


def test_losses_and_gradients_are_bit_equal_and_less_is_kept() -> None:
    losses, gradients, kept = step(vidt(False))
    other_losses, other_gradients, other_kept = step(vidt(True))
    assert losses.keys() == other_losses.keys() and gradients.keys() == other_gradients.keys()
    assert all(torch.equal(losses[name], other_losses[name]) for name in losses)
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)
    assert other_kept < 0.5 * kept


def test_blocks_run_twice_in_training_and_once_without_a_graph() -> None:
    model, runs = vidt(True), []
    for module in (model.backbone.layers[2].blocks[0].mlp, model.transformer.decoder.layers[0].self_attn):
        module.register_forward_hook(lambda module, _inputs, _output: runs.append(type(module).__name__))
    step(model)
    # patches and DET tokens have their own call of the feed-forward layer
    assert sorted(runs) == ["FeedForward"] * 4 + ["SelfAttention"] * 2
    runs.clear()
    with torch.no_grad():
        model(BATCH)
    assert sorted(runs) == ["FeedForward"] * 2 + ["SelfAttention"]


def trained(enabled: bool, balancer: Balancer) -> dict[str, Tensor]:
    """Parameters after two steps of MoKD."""
    torch.manual_seed(0)
    distiller = Distiller(vidt(enabled), vidt(False), MoKD())
    rank = dist.get_rank() if dist.is_initialized() else 0
    batch = [item(64, 48, seed=2 * rank), item(40, 72, seed=2 * rank + 1)]
    trainer = MoKDTrainer(
        create_ddp_model(distiller, device_ids=None) if dist.is_initialized() else distiller,
        repeat(batch),
        torch.optim.AdamW(distiller.parameters(), lr=1e-3),
        objectives=Objectives(
            {"distill": ["loss_distill_*"], "task": ["loss_ce*", "loss_bbox*", "loss_giou*"]}
        ),
        balancer=balancer,
        clip_grad={"max_norm": 0.1, "norm_type": 2.0},
    )
    with EventStorage() as trainer.storage:
        for trainer.iter in range(2):
            trainer.run_step()
    return {name: value.clone() for name, value in distiller.state_dict().items()}


@pytest.mark.parametrize("balancer", [Amortized, ClosedForm])
def test_balanced_training_is_bit_equal(balancer: type[Balancer]) -> None:
    """A second forward after the step; two backward passes through one graph."""
    plain, checkpointed = (trained(enabled, balancer()) for enabled in (False, True))
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def worker(rank: int, folder: str) -> None:
    results = [trained(enabled, Amortized()) for enabled in (False, True)]
    torch.save(results, f"{folder}/rank{rank}.pt")


def test_data_parallel_training_is_bit_equal(tmp_path: Path) -> None:
    spawn(worker, tmp_path)
    (plain, checkpointed), (_, other) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)
    assert all(torch.equal(checkpointed[name], other[name]) for name in other)
