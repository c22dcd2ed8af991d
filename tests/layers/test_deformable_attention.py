"""Deformable attention against a scalar-by-scalar formulation, and its gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mokd_det.layers import KERNELS, MultiScaleDeformableAttention, register_kernel

SHAPES = [(5, 7), (3, 2), (1, 1)]


def _inputs(spread: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    cells = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, cells, 2, 3, generator=generator, dtype=torch.float64)
    locations = 0.5 + spread * torch.randn(
        2, 4, 2, len(SHAPES), 3, 2, generator=generator, dtype=torch.float64
    )
    weights = torch.rand(2, 4, 2, len(SHAPES), 3, generator=generator, dtype=torch.float64)
    return value, locations, weights


def _by_hand(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum over levels and points of weight times the bilinear read, one number at a time."""
    batch, queries, heads, levels, points, _ = locations.shape
    channels = value.shape[-1]
    out = torch.zeros(batch, queries, heads, channels, dtype=value.dtype)
    for index in torch.cartesian_prod(
        *(torch.arange(n) for n in (batch, queries, heads, levels, points))
    ).tolist():
        b, q, m, level, p = index
        height, width = SHAPES[level]
        start = sum(h * w for h, w in SHAPES[:level])
        x = locations[b, q, m, level, p, 0].item() * width - 0.5
        y = locations[b, q, m, level, p, 1].item() * height - 0.5
        for dy in (0, 1):
            for dx in (0, 1):
                column, row = math.floor(x) + dx, math.floor(y) + dy
                if 0 <= column < width and 0 <= row < height:
                    share = (1 - abs(x - column)) * (1 - abs(y - row)) * weights[b, q, m, level, p]
                    out[b, q, m] += share * value[b, start + row * width + column, m]
    return out.flatten(2)


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@pytest.mark.parametrize("spread", [0.1, 0.6, 100.0], ids=["inside", "across the border", "far outside"])
def test_kernel_equals_the_definition(kernel: str, spread: float) -> None:
    inputs = _inputs(spread)
    value, locations, weights = inputs
    torch.testing.assert_close(
        KERNELS[kernel](value, SHAPES, locations, weights), _by_hand(*inputs), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_kernel_gradients(kernel: str) -> None:
    value, locations, weights = (x[:1, : 43 if i == 0 else 2].clone() for i, x in enumerate(_inputs()))
    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, p, w: KERNELS[kernel](v, SHAPES, p, w), tensors, atol=1e-7)


def test_initial_offsets_point_in_a_direction_per_head_and_grow_with_the_point() -> None:
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    offsets = module.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(3):
        torch.testing.assert_close(offsets[:, 0, point], expected * (point + 1), atol=1e-6, rtol=0)
        torch.testing.assert_close(offsets[:, 1, point], offsets[:, 0, point])
    assert not module.sampling_offsets.weight.any() and not module.attention_weights.weight.any()


def test_padding_reads_as_zero_and_points_stay_finite() -> None:
    module = MultiScaleDeformableAttention(8, num_heads=2, num_levels=3, num_points=2).double()
    cells = sum(h * w for h, w in SHAPES)
    query, value = torch.randn(1, 4, 8, dtype=torch.float64), torch.randn(1, cells, 8, dtype=torch.float64)
    reference = torch.rand(1, 4, 3, 2, dtype=torch.float64)
    everything = torch.ones(1, cells, dtype=torch.bool)
    out = module(query, reference, value, SHAPES, everything)
    torch.testing.assert_close(out, module.output_proj.bias.expand_as(out))
    garbage = value.clone().masked_fill(everything[..., None], 1e6)
    torch.testing.assert_close(module(query, reference, garbage, SHAPES, everything), out)


def test_bfloat16_autocast_samples_in_float32() -> None:
    module = MultiScaleDeformableAttention(8, num_heads=2, num_levels=3, num_points=2)
    cells = sum(h * w for h, w in SHAPES)
    query, value, reference = torch.randn(1, 4, 8), torch.randn(1, cells, 8), torch.rand(1, 4, 3, 4)
    exact = module(query, reference, value, SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = module(query, reference, value, SHAPES)
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_unknown_and_duplicate_kernels() -> None:
    with pytest.raises(ValueError, match="unknown deformable attention kernel 'cuda'"):
        MultiScaleDeformableAttention(kernel="cuda")
    with pytest.raises(ValueError, match="exists already"):
        register_kernel("grid_sample")(KERNELS["grid_sample"])
