"""The plain formulation and the package's give one loss and one gradient: neither is fast by being another model."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mokd_det.modeling import EPFF, ViDT
from tests.modeling.test_vidt import item, small_vidt


@pytest.fixture
def plain(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("plain_vidt")


def step(model: ViDT, batch: list[dict]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients."""
    torch.manual_seed(5)
    losses = model(batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sizes", [[(64, 64), (64, 64)], [(100, 50), (33, 120)]], ids=["equal", "padded"])
@pytest.mark.parametrize("drop_path", [0.0, 0.4])
def test_losses_and_gradients(plain: ModuleType, sizes: list[tuple[int, int]], drop_path: float) -> None:
    """float64, the same draws of stochastic depth; dropout draws in another way and is off."""
    options = {"transformer": {"dropout": 0.0}, "backbone": {"drop_path": drop_path, "depths": (2, 1, 2, 2)}}
    ours = small_vidt(**options).double().train()
    with torch.no_grad():
        # Fresh weights put zeros into box heads, offsets and attention weights, where errors would hide.
        for parameter in ours.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other = plain.plain_vidt(ours)
    batch = [item(*size, boxes=2 + i, seed=i) for i, size in enumerate(sizes)]
    losses, gradients = step(ours, batch)
    plain_losses, plain_gradients = step(other, batch)
    assert losses.keys() == plain_losses.keys() and gradients.keys() == plain_gradients.keys()
    assert len(losses) == 9 and len(gradients) > 100
    torch.testing.assert_close(losses, plain_losses, rtol=1e-9, atol=0)
    for name, gradient in gradients.items():
        largest = gradient.abs().max().item()
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=0, atol=1e-9 * largest + 1e-12)


def test_the_copy_is_plain_throughout_and_the_model_untouched(plain: ModuleType) -> None:
    model = small_vidt()
    kinds = [type(module) for module in model.modules()]
    other = plain.plain_vidt(model)
    assert [type(module) for module in model.modules()] == kinds
    left = {type(module) for module in other.modules()} & set(plain.PLAIN)
    assert not left
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in other.parameters()}


def test_what_has_no_plain_counterpart_is_refused(plain: ModuleType) -> None:
    """A detector without a criterion; ViDT+'s losses."""
    incomplete = small_vidt()
    incomplete.criterion = None
    with pytest.raises(ValueError, match="HungarianMatcher, SetCriterion"):
        plain.plain_vidt(incomplete)
    weights = dict(ce=2.0, bbox=5.0, giou=2.0, iouaware=2.0)
    plus = small_vidt(neck=EPFF(hidden_dim=8), iou_head=True, criterion={"weights": weights})
    with pytest.raises(ValueError, match="plain criterion"):
        plain.plain_vidt(plus).train()([item(32, 32)])
