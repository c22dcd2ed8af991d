"""Inputs of deformable attention's kernels that are easy to get wrong, and what must come out of any kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mokd_det.layers import KERNELS

__all__ = ["CASES", "compare", "make_inputs", "outputs_and_gradients"]

Shapes = Sequence[tuple[int, int]]

CASES: dict[str, tuple[tuple[int, int, int, int, int], Shapes]] = {
    # (images, queries, heads, channels of a head, points), levels
    "four levels": ((2, 1, 2, 8, 4), [(6, 9), (4, 5), (2, 3), (1, 2)]),
    "nothing a power of two": ((2, 2, 3, 5, 3), [(5, 7), (3, 2), (1, 1)]),
    "one cell": ((1, 2, 1, 4, 2), [(1, 1)]),
    "one of everything": ((1, 1, 1, 1, 1), [(2, 3)]),
    "many points": ((1, 1, 1, 3, 9), [(4, 4), (2, 5)]),
    "many channels": ((1, 1, 1, 300, 3), [(3, 4), (2, 2)]),
    "no queries": ((2, 0, 2, 4, 2), [(3, 4), (2, 2)]),
    "no images": ((0, 3, 2, 4, 2), [(3, 4), (2, 2)]),
}


def make_inputs(
    sizes: tuple[int, int, int, int, int],
    shapes: Shapes,
    spread: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, locations and weights; a good part of the points is outside."""
    batch, queries, heads, channels, points = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    cells = sum(height * width for height, width in shapes)
    value = torch.randn(batch, cells, heads, channels, generator=generator, dtype=torch.float64)
    locations = 0.5 + spread * torch.randn(
        batch, queries, heads, len(shapes), points, 2, generator=generator, dtype=torch.float64
    )
    weights = torch.randn(
        batch, queries, heads, len(shapes), points, generator=generator, dtype=torch.float64
    )
    return value.to(dtype), locations.to(dtype), weights.to(dtype)


def outputs_and_gradients(kernel: str, shapes: Shapes, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Output, and gradients by the three inputs of a weighted sum of it."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = KERNELS[kernel](leaves[0], shapes, *leaves[1:])
    steps = torch.arange(output.numel(), dtype=torch.float64, device=output.device).view(output.shape)
    gradients = torch.autograd.grad(output, leaves, (0.37 * steps).cos().to(output.dtype))
    return [output.detach(), *gradients]


def compare(
    kernel: str, shapes: Shapes, inputs: Sequence[Tensor], device: str = "cpu", *, rtol: float, atol: float
) -> None:
    """A kernel's output and gradients against the reference's in float64, from the same rounded numbers."""
    found = outputs_and_gradients(kernel, shapes, [tensor.to(device) for tensor in inputs])
    expected = outputs_and_gradients("grid_sample", shapes, [tensor.cpu().double() for tensor in inputs])
    assert [tensor.dtype for tensor in found] == [inputs[0].dtype, *(tensor.dtype for tensor in inputs)]
    for name, one, other in zip(("output", "value", "locations", "weights"), found, expected, strict=True):
        torch.testing.assert_close(
            one.cpu().double(), other, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
