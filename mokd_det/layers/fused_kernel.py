"""Deformable attention as one weighted sum of rows over all levels, with its own backward, in plain PyTorch.

A query's output of a head is a sum over 4·L·P rows of the value: the four cells around each of the P points of every
level, each with bilinear share × attention weight. That is a bag of rows with weights, for which ``embedding_bag`` has
a fused kernel: nothing of the size 4·L·P·D is ever written, and no level is copied or transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernel_registry import register_kernel
from .level_table import level_table

__all__ = ["Corners", "corners_of", "fused_kernel", "fused_sampling", "point_gradients", "row_sums"]

# Numbers that the backward reads at once: they stay in a core's cache.
_READ_AT_ONCE = 2**19
# Pixels; every point beyond is as far outside, and its index fits 32 bits.
_FAR = 2.0**20


class Corners(NamedTuple):
    """The cells around N = B·Q·M times L·P points.

    Attributes:
        rows: (N, 4, L·P) int32 or int64, rows of the value as a (B·S·M, D) table: the upper left, upper right, lower
            left and lower right cells; stand-ins for cells outside.
        shares: of the left and right columns, upper and lower lines, each (N, L·P); 0 outside.
        inside: whether these columns and lines are in the level, each (N, L·P) bool.
        sizes: width and height of the points' levels, (2, L·P).
    """

    rows: Tensor
    shares: tuple[Tensor, ...]
    inside: tuple[Tensor, ...]
    sizes: Tensor

    def row_shares(self, weights: Tensor) -> Tensor:
        """Attention weight times bilinear share of every row, (N, 4, L·P); ``weights`` (N, L·P)."""
        left, right, upper, lower = self.shares
        shares = weights.new_empty(self.rows.shape)
        for first, line in ((0, upper * weights), (2, lower * weights)):
            torch.mul(line, left, out=shares[:, first])
            torch.mul(line, right, out=shares[:, first + 1])
        return shares


def corners_of(value_shape: Sequence[int], shapes: Sequence[tuple[int, int]], locations: Tensor) -> Corners:
    """All levels' cells and shares at once, for a value (B, S, M, D) and locations (B, Q, M, L, P, 2)."""
    batch, cells, heads, _ = value_shape
    queries, points = locations.shape[1], locations.shape[4]
    dtype = torch.int32 if batch * cells * heads < 2**31 else torch.int64
    kind = {"dtype": dtype, "device": locations.device}
    levels = level_table(shapes, kind["device"], kind["dtype"])
    # Points of all levels in one line of memory: the innermost loops are long.
    heights, widths, first_cells = levels.t().repeat_interleave(points, 1)
    pairs = locations.reshape(-1, len(shapes) * points, 2)
    columns, column_shares, column_inside = _neighbours(pairs[..., 0], widths)
    lines, line_shares, line_inside = _neighbours(pairs[..., 1], heights)

    images = torch.arange(batch, **kind)[:, None, None] * (cells * heads)
    firsts = (images + torch.arange(heads, **kind)).expand(batch, queries, heads).reshape(-1, 1)
    rows = torch.empty(pairs.shape[0], 4, pairs.shape[1], **kind)
    columns = [column * heads for column in columns]
    for first, line in ((0, lines[0]), (2, lines[1])):
        begin = (line * widths).add_(first_cells).mul_(heads).add_(firsts)
        torch.add(begin, columns[0], out=rows[:, first])
        torch.add(begin, columns[1], out=rows[:, first + 1])
    sizes = torch.stack((widths, heights)).to(locations.dtype)
    return Corners(rows, (*column_shares, *line_shares), (*column_inside, *line_inside), sizes)


def _neighbours(
    locations: Tensor, sizes: Tensor
) -> tuple[list[Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Along one axis, the two cells around points (N, L·P): inside the level, their shares, and if they were inside."""
    pixels = (locations * sizes.to(locations.dtype)).sub_(0.5).clamp_(-2.0, _FAR)
    first = pixels.floor()
    share = pixels.sub_(first)
    # Not a number converts to any integer; its share stays not a number, so that the output shows it.
    first = first.to(sizes.dtype)
    neighbours = (first, first + 1)
    cells = [cell.clamp(min=0).minimum(sizes - 1) for cell in neighbours]
    inside = (neighbours[0] == cells[0], neighbours[1] == cells[1])
    return cells, ((1 - share).mul_(inside[0]), share.mul_(inside[1])), inside


def row_sums(rows: Tensor, shares: Tensor, terms: Tensor, count: int) -> Tensor:
    """Sum of ``shares[n, k] · terms[n]`` over all (n, k) with ``rows[n, k] = r``, for every r: (count, D).

    Rows are sorted and the terms of each added in their order, so the sum depends neither on the number of threads nor
    on a GPU's scheduling.

    Args:
        rows, shares: (N, K).
        terms: (N, D).
        count: of rows in the result.
    """
    ordered, order = rows.flatten().sort(stable=True)
    present, sizes = torch.unique_consecutive(ordered, return_counts=True)
    sums = F.embedding_bag(
        order // rows.shape[1],
        terms,
        F.pad(sizes.cumsum(0), (1, 0)),
        mode="sum",
        per_sample_weights=shares.flatten().index_select(0, order),
        include_last_offset=True,
    )
    return terms.new_zeros(count, terms.shape[1]).index_copy_(0, present.long(), sums)


def _products(table: Tensor, rows: Tensor, terms: Tensor) -> Tensor:
    """Scalar products of ``table[rows[n, k]]`` and ``terms[n]``, (N, K)."""
    products = terms.new_empty(rows.shape[0], 1, rows.shape[1])
    step = max(1, _READ_AT_ONCE // (rows.shape[1] * table.shape[1]))
    bags = torch.arange(step * rows.shape[1], dtype=rows.dtype, device=rows.device)
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        # Bags of one row: unlike index_select, this read fetches ahead.
        read = F.embedding_bag(part.flatten(), table, bags[: part.numel()], mode="sum")
        torch.bmm(
            terms[start : start + step].unsqueeze(1),
            read.view(*part.shape, -1).transpose(1, 2),
            out=products[start : start + step],
        )
    return products.squeeze(1)


def point_gradients(corners: Corners, weights: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the locations (N, L·P, 2) and of the weights (N, L·P).

    ``products`` of every cell's value and the output's gradient, (N, 4, L·P).
    """
    left, right, upper, lower = corners.shares
    inside_left, inside_right, inside_upper, inside_lower = corners.inside
    upper_left, upper_right, lower_left, lower_right = products.unbind(1)
    upper_read = (upper_left * left).addcmul_(upper_right, right)
    lower_read = (lower_left * left).addcmul_(lower_right, right)
    left_read = (upper_left * upper).addcmul_(lower_left, lower)
    right_read = (upper_right * upper).addcmul_(lower_right, lower)
    slopes = weights.new_empty(*weights.shape, 2)
    for axis, (rising, falling) in enumerate(
        (
            (right_read.mul_(inside_right), left_read.mul_(inside_left)),
            (lower_read * inside_lower, upper_read * inside_upper),
        )
    ):
        torch.mul(rising.sub_(falling).mul_(corners.sizes[axis]), weights, out=slopes[..., axis])
    return slopes, upper_read.mul_(upper).addcmul_(lower_read, lower)


class _FusedSampling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        value: Tensor,
        locations: Tensor,
        weights: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        corners = corners_of(value.shape, shapes, locations)
        keep = None
        if padding_mask is not None:
            cells = (~padding_mask).to(value.dtype).flatten()
            if value.shape[2] > 1:
                cells = cells.repeat_interleave(value.shape[2])
            keep = cells.index_select(0, corners.rows.flatten()).view_as(corners.rows)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            value, weights, keep, corners.rows, corners.sizes, *corners.shares, *corners.inside
        )
        shares = _kept(corners.row_shares(weights.reshape(-1, corners.rows.shape[2])), keep)
        table = value.view(-1, value.shape[-1])
        output = F.embedding_bag(
            corners.rows.flatten(1), table, mode="sum", per_sample_weights=shares.flatten(1)
        )
        batch, queries, heads = weights.shape[:3]
        return output.view(batch, queries, heads * value.shape[3]), shares.sum((1, 2)).view(weights.shape[:3])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_total: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        value, weights, keep, rows, sizes, *of_lines = ctx.saved_tensors
        corners = Corners(rows, tuple(of_lines[:4]), tuple(of_lines[4:]), sizes)
        table = value.view(-1, value.shape[-1])
        flat_weights = weights.reshape(-1, rows.shape[2])
        grad_value = grad_locations = grad_weights = None
        if grad_output is not None:
            grad_output = grad_output.reshape(-1, table.shape[1])
            if ctx.needs_input_grad[0]:
                shares = _kept(corners.row_shares(flat_weights), keep).flatten(1)
                grad_value = row_sums(rows.flatten(1), shares, grad_output, table.shape[0]).view_as(value)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            if grad_output is None:
                products = weights.new_zeros(rows.shape)
            else:
                products = _products(table, rows.flatten(1), grad_output).view_as(rows)
            if grad_total is not None:
                products += grad_total.reshape(-1, 1, 1)
            slopes, products = point_gradients(corners, flat_weights, _kept(products, keep))
            grad_locations, grad_weights = slopes.view(*weights.shape, 2), products.view_as(weights)
        return grad_value, grad_locations, grad_weights, None, None


def _kept(shares: Tensor, keep: Tensor | None) -> Tensor:
    return shares if keep is None else shares.mul_(keep)


def fused_sampling(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    padding_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`fused_kernel` that knows of padding, and tells how much of the weights fell on cells that are there.

    Args:
        value, shapes, locations, weights: see :func:`register_kernel`.
        padding_mask: (B, S) bool, True where the value reads as zero.

    Returns:
        The output (B, Q, M·D), and the sum of attention weight times bilinear share over the cells read, (B, Q, M).
    """
    output, total = _FusedSampling.apply(
        value.contiguous(), locations, weights.contiguous(), shapes, padding_mask
    )
    return output, total


@register_kernel("fused")
def fused_kernel(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """See the module. First derivatives only; equal sums with any number of threads, and on a GPU in every run."""
    return fused_sampling(value, shapes, locations, weights)[0]
