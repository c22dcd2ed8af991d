"""Deformable attention on CUDA by two Triton kernels, compiled at the first call; no compiled package is needed.

One program serves one head of one query: it reads the cells around its points, all levels in one sweep, and keeps the
sum in registers; the backward pass reads the same cells once more, for all three gradients. Memory: the output, and in
the backward pass the gradients (the value's in float32 until it is complete); nothing is kept but the inputs.

The value's gradient is added up by atomic operations, whose order changes from run to run. Under
``torch.use_deterministic_algorithms(True)`` its rows are sorted and added in order instead (:func:`row_sums`), which
takes longer and 40·L·P bytes per query and head.
"""

# Annotations are not postponed here: older versions of Triton's interpreter know tl.constexpr as a class only.
import contextlib
import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused_kernel import corners_of, row_sums
from .level_table import level_table

__all__ = ["INTERPRETED", "sample"]

logger = logging.getLogger(__name__)

# A kernel's arguments have no Python types: pointers and numbers of the device, of which Triton makes its own objects.


@triton.jit
def _read_points(locations, weights, levels, place, level, real, ACCUMULATE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of every point: its level's size and first cell, its weight, the cell to the upper left, shares of the others."""
    height = tl.load(levels + 3 * level, mask=real, other=1)
    width = tl.load(levels + 3 * level + 1, mask=real, other=1)
    start = tl.load(levels + 3 * level + 2, mask=real, other=0)
    weight = tl.load(weights + place, mask=real, other=0.0)
    x = tl.load(locations + 2 * place, mask=real, other=0.0) * width.to(ACCUMULATE) - 0.5
    y = tl.load(locations + 2 * place + 1, mask=real, other=0.0) * height.to(ACCUMULATE) - 0.5
    # Infinity becomes a point outside. By comparisons, which keep what is not a number: the output shall show it.
    x = tl.where(x < -2.0, -2.0, tl.where(x > 1048576.0, 1048576.0, x))
    y = tl.where(y < -2.0, -2.0, tl.where(y > 1048576.0, 1048576.0, y))
    left = tl.floor(x)
    top = tl.floor(y)
    return width, height, start, weight, left, top, x - left, y - top


@triton.jit
def _corner(  # type: ignore[no-untyped-def]
    dx: tl.constexpr, dy: tl.constexpr, left, top, right_share, lower_share, width, height, start, real
):
    """One of the four cells around every point: its row in the value, whether it is in the level, its two shares."""
    column = left + dx
    line = top + dy
    inside = real & (column >= 0) & (column < width) & (line >= 0) & (line < height)
    share_x = right_share if dx == 1 else 1 - right_share
    share_y = lower_share if dy == 1 else 1 - lower_share
    cell = (start + line.to(tl.int32) * width + column.to(tl.int32)).to(tl.int64)
    return cell, inside, share_x, share_y


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    value,
    locations,
    weights,
    levels,
    output,
    queries,
    heads,
    channels,
    points: tl.constexpr,
    per_level: tl.constexpr,
    stride_image,
    stride_cell,
    stride_head,
    ACCUMULATE: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Output (B·Q·M, D) of weights (B·Q·M, L·P), locations (B·Q·M, L·P, 2); levels: a level_table."""
    program = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    value += (program // heads // queries) * stride_image + (program % heads) * stride_head
    total = tl.zeros((CHANNELS,), ACCUMULATE)
    for first in range(0, points, POINTS):
        point = first + tl.arange(0, POINTS)
        real = point < points
        place = program * points + point
        width, height, start, weight, left, top, right_share, lower_share = _read_points(
            locations, weights, levels, place, point // per_level, real, ACCUMULATE
        )
        for corner in tl.static_range(4):
            cell, inside, share_x, share_y = _corner(
                corner % 2, corner // 2, left, top, right_share, lower_share, width, height, start, real
            )
            read = tl.load(
                value + cell[:, None] * stride_cell + channel[None, :],
                mask=inside[:, None] & (channel < channels)[None, :],
                other=0.0,
            ).to(ACCUMULATE)
            total += tl.sum(read * (share_x * share_y * weight)[:, None], 0)
    tl.store(output + program * channels + channel, total, mask=channel < channels)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    value,
    locations,
    weights,
    levels,
    grad_output,
    grad_value,
    grad_locations,
    grad_weights,
    queries,
    heads,
    channels,
    points: tl.constexpr,
    per_level: tl.constexpr,
    cells,
    stride_image,
    stride_cell,
    stride_head,
    ACCUMULATE: tl.constexpr,
    POINTS: tl.constexpr,
    CHANNELS: tl.constexpr,
    VALUE: tl.constexpr,
    POSITION: tl.constexpr,
):
    """Gradients; the value's (B, S, M, D) is added to if VALUE, the others are written if POSITION."""
    program = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    image = program // heads // queries
    head = program % heads
    value += image * stride_image + head * stride_head
    grad_value += (image * cells * heads + head) * channels
    upstream = tl.load(grad_output + program * channels + channel, mask=channel < channels, other=0.0).to(
        ACCUMULATE
    )
    for first in range(0, points, POINTS):
        point = first + tl.arange(0, POINTS)
        real = point < points
        place = program * points + point
        width, height, start, weight, left, top, right_share, lower_share = _read_points(
            locations, weights, levels, place, point // per_level, real, ACCUMULATE
        )
        slope_x = tl.zeros((POINTS,), ACCUMULATE)
        slope_y = tl.zeros((POINTS,), ACCUMULATE)
        slope_weight = tl.zeros((POINTS,), ACCUMULATE)
        for corner in tl.static_range(4):
            dx = corner % 2
            dy = corner // 2
            cell, inside, share_x, share_y = _corner(
                dx, dy, left, top, right_share, lower_share, width, height, start, real
            )
            mask = inside[:, None] & (channel < channels)[None, :]
            if POSITION:
                read = tl.load(value + cell[:, None] * stride_cell + channel[None, :], mask=mask, other=0.0)
                product = tl.sum(read.to(ACCUMULATE) * upstream[None, :], 1)
                slope_weight += product * share_x * share_y
                slope_x += product * share_y * (2 * dx - 1)
                slope_y += product * share_x * (2 * dy - 1)
            if VALUE:
                tl.atomic_add(
                    grad_value + cell[:, None] * (heads * channels) + channel[None, :],
                    (share_x * share_y * weight)[:, None] * upstream[None, :],
                    mask=mask,
                    sem="relaxed",
                )
        if POSITION:
            tl.store(grad_weights + place, slope_weight, mask=real)
            tl.store(grad_locations + 2 * place, slope_x * weight * width.to(ACCUMULATE), mask=real)
            tl.store(grad_locations + 2 * place + 1, slope_y * weight * height.to(ACCUMULATE), mask=real)


INTERPRETED = not isinstance(_forward, triton.runtime.JITFunction)
"""Whether Triton runs its kernels in Python, on tensors of the CPU (TRITON_INTERPRET=1)."""


def _tile(channels: int, points: int) -> dict[str, int]:
    """Sizes of a program's tile, and its warps."""
    width = triton.next_power_of_2(channels)
    height = min(triton.next_power_of_2(points), max(1, 512 // width))
    return {"POINTS": height, "CHANNELS": width, "num_warps": 1 if height * width <= 1024 else 4}


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@functools.lru_cache(maxsize=1)
def _tell_determinism() -> None:
    logger.info(
        "torch.use_deterministic_algorithms: deformable attention sorts the rows of its value's gradient and adds them "
        "in order, which takes longer than atomic operations"
    )


class _TritonSampling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        batch, _, heads, channels = value.shape
        queries, points = weights.shape[1], weights.shape[3] * weights.shape[4]
        output = value.new_empty(batch, queries, heads * channels)
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        if output.numel():
            inputs = value, locations, weights, level_table(shapes, value.device)
            sizes = queries, heads, channels, points, weights.shape[4]
            constants = {"ACCUMULATE": _type(locations.dtype), **_tile(channels, points)}
            with _on(value.device):
                _forward[(batch * queries * heads,)](
                    *inputs, output, *sizes, *value.stride()[:3], **constants
                )
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        batch, cells, heads, channels = value.shape
        queries, points = weights.shape[1], weights.shape[3] * weights.shape[4]
        wants_value, wants_position = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3])
        grad_output = grad_output.contiguous()
        sort = wants_value and torch.are_deterministic_algorithms_enabled()
        grad_value = None
        if sort:
            _tell_determinism()
            corners = corners_of(value.shape, ctx.shapes, locations)
            shares = corners.row_shares(weights.view(-1, points)).flatten(1)
            terms = grad_output.view(-1, channels).to(locations.dtype)
            grad_value = row_sums(corners.rows.flatten(1), shares, terms, batch * cells * heads)
            grad_value = grad_value.view(value.shape)
        elif wants_value:
            grad_value = torch.zeros(value.shape, dtype=locations.dtype, device=value.device)
        grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
        if grad_output.numel() and (wants_position or not sort):
            inputs = value, locations, weights, level_table(ctx.shapes, value.device), grad_output
            of_value = grad_locations if grad_value is None else grad_value  # if None, nothing is added to it
            sizes = queries, heads, channels, points, weights.shape[4], cells
            constants = {"ACCUMULATE": _type(locations.dtype), **_tile(channels, points)}
            constants |= {"VALUE": wants_value and not sort, "POSITION": wants_position}
            with _on(value.device):
                _backward[(batch * queries * heads,)](
                    *inputs, of_value, grad_locations, grad_weights, *sizes, *value.stride()[:3], **constants
                )
        if grad_value is not None:
            grad_value = grad_value.to(value.dtype)
        return grad_value, grad_locations, grad_weights, None


def _type(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32


def sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """The kernel of :func:`register_kernel`; ``value`` may be of half precision, the others float32 or float64."""
    if value.stride(-1) != 1:
        value = value.contiguous()
    sizes = tuple((int(height), int(width)) for height, width in shapes)
    return _TritonSampling.apply(value, locations.contiguous(), weights.contiguous(), sizes)
