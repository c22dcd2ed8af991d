"""Gradients of every layer and loss of this package against finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mokd_det.balancing.log_objective import LogObjective
from mokd_det.distillation import row_losses
from mokd_det.distillation.projectors import build_projector
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.distillation.subspace import SubspaceHead
from mokd_det.layers.boxes import (
    box_iou,
    cxcywh_to_xyxy,
    generalized_iou,
    inverse_sigmoid,
    xyxy_to_cxcywh,
)
from mokd_det.layers.deformable_attention import KERNELS, MultiScaleDeformableAttention
from mokd_det.layers.det_attention import det_attention_weights
from mokd_det.layers.mlp import MLP
from mokd_det.layers.reconfigured_attention import ReconfiguredAttention


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(function: Callable[..., Any], *inputs: Tensor, module: nn.Module | None = None) -> None:
    """Compare the gradients with respect to the inputs and to every parameter of the module, in random directions."""
    names = [] if module is None else [name for name, _ in module.named_parameters()]
    parameters = [] if module is None else [p.detach().clone().requires_grad_() for p in module.parameters()]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]

    def run(*tensors: Tensor) -> Any:
        given, values = tensors[: len(leaves)], dict(zip(names, tensors[len(leaves) :], strict=True))
        return (
            function(*given)
            if module is None
            else functional_call(_As(module, function), _named(values), given)
        )

    assert torch.autograd.gradcheck(
        run, (*leaves, *parameters), atol=1e-6, rtol=1e-5, check_undefined_grad=False
    )


class _As(nn.Module):
    """A module that is called in another way than by its forward."""

    def __init__(self, module: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = module
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self.inner, *inputs)


def _named(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"inner.{name}": value for name, value in values.items()}


def randomise(module: nn.Module) -> nn.Module:
    """Parameters that are zero at the start would hide errors."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.4)
    return module.double()


def test_mlp():
    check(lambda module, x: module(x), torch.randn(3, 4), module=randomise(MLP(4, 5, 2, 3)))


@pytest.mark.parametrize("shift", [0, 1])
def test_window_attention(shift):
    module = randomise(ReconfiguredAttention(4, 2, 2))
    check(lambda m, patches: m.attend_windows(patches, shift), torch.randn(1, 2, 3, 4), module=module)


@pytest.mark.parametrize("masked", [False, True])
def test_det_attention(masked):
    module = randomise(ReconfiguredAttention(4, 2, 2))
    mask = torch.zeros(1, 1, 3, dtype=torch.bool)
    mask[:, :, 2:] = masked
    det, patches = torch.randn(1, 2, 4), torch.randn(1, 1, 3, 4)
    check(lambda m, d, p: m.attend_det(d, p, mask), det, patches, module=module)
    check(lambda m, d, p: det_attention_weights(m.qkv, 2, d, p, mask), det, patches, module=module)


# Triton's kernels have theirs in tests/layers.
@pytest.mark.parametrize("kernel", sorted(set(KERNELS) - {"triton"}))
@pytest.mark.parametrize("coordinates", [2, 4], ids=["points", "boxes"])
def test_deformable_attention(kernel, coordinates):
    """Parameters and values; the locations lie between the cells, where bilinear reading has no kinks."""
    module = MultiScaleDeformableAttention(4, num_heads=2, num_levels=2, num_points=2, kernel=kernel).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("sampling_offsets"):
                parameter.normal_(std=0.4)
        module.sampling_offsets.bias.uniform_(-0.3, 0.3)
    shapes = [(3, 4), (2, 2)]
    reference = torch.rand(1, 2, 2, coordinates) * 0.6 + 0.2
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[:, 3] = True
    query, value = torch.randn(1, 2, 4), torch.randn(1, 16, 4)
    check(lambda m, q, v: m(q, reference, v, shapes, mask), query, value, module=module)


def test_boxes():
    boxes = torch.tensor([[0.4, 0.5, 0.3, 0.2], [0.6, 0.45, 0.2, 0.5]])
    others = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.15, 0.2, 0.1, 0.1]])
    check(cxcywh_to_xyxy, boxes)
    check(xyxy_to_cxcywh, boxes)
    for pair in (box_iou, generalized_iou):
        check(
            lambda a, b, pair=pair: pair(cxcywh_to_xyxy(a)[:, None], cxcywh_to_xyxy(b)[None]), boxes, others
        )
    check(inverse_sigmoid, torch.rand(5) * 0.8 + 0.1)


@pytest.mark.parametrize("kind", ["linear", "orthogonal", "mlp", "ensemble"])
def test_projectors(kind):
    module = build_projector(kind, 3, 4).double()
    check(lambda m, x: m(x), torch.randn(5, 3), module=module)


def test_stiefel_layer():
    module = StiefelLinear(3, 5).double()
    check(lambda m, x: m(x), torch.randn(4, 3), module=module)


@pytest.mark.parametrize("loss", ["similarity", "regression", "l1", "normalized_l1"])
@pytest.mark.parametrize("norm", ["layer_norm", "standardize", "none"])
@pytest.mark.parametrize("student_norm", ["before", "after", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_subspace_head(loss, norm, student_norm, weighted):
    module = SubspaceHead(2, 3, 4, loss=loss, norm=norm, student_norm=student_norm, bias=True).double()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5) if "metric" in name else parameter.normal_(std=0.1)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0]) if weighted else None
    teacher = torch.randn(4, 3)  # it is detached
    check(lambda m, student: m(student, teacher, weights), torch.randn(4, 2), module=module)


@pytest.mark.parametrize("name", ["smooth_l1", "l1", "cosine_distance", "mean_euclidean"])
@pytest.mark.parametrize("weighted", [False, True])
def test_row_losses(name, weighted):
    weights = torch.tensor([1.0, 0.5, 0.0]) if weighted else None
    loss = getattr(row_losses, name)
    check(lambda p, t: loss(p, t, weights), torch.randn(3, 4), torch.randn(3, 4))


@pytest.mark.parametrize("how", ["layer_norm", "standardize"])
def test_row_norms(how):
    check(lambda rows: row_losses.normalize(rows, how), torch.randn(4, 3))


def test_weights_of_the_logarithms():
    """Σ π_i log D_i has the derivative π_i / D_i, which the balancers apply to the detached losses."""
    objective = LogObjective(0.1)
    objective.setup(("a", "b"), "cpu")
    losses, pi, step = torch.tensor([0.7, 2.0]), torch.tensor([0.3, 0.7]), 1e-6
    for index, weight in enumerate(objective.raw_weights(pi, losses)):
        shift = step * torch.eye(2)[index]
        up, down = ((pi * objective.shifted(losses + side * shift).log()).sum() for side in (1, -1))
        torch.testing.assert_close(weight, (up - down) / (2 * step), rtol=1e-7, atol=1e-9)
