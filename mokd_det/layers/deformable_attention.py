"""Multi-scale deformable attention (Zhu et al., ICLR 2021) behind interchangeable kernels.

The module computes values, sampling locations and weights with ordinary layers; only the sampling itself is a
*kernel*: a function ``(value, shapes, locations, weights) -> output`` that can be swapped without touching a model.
``"grid_sample"`` is the reference and works on every device; ``"auto"`` takes the fastest that works where the tensors
are. None of ours needs a compiled package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fused_kernel import fused_sampling
from .kernel_choice import AUTO, check_kernel, choose_kernel
from .kernel_registry import HALF_PRECISION, KERNELS, register_kernel
from .level_table import level_table

__all__ = ["MultiScaleDeformableAttention", "grid_sample_kernel"]


@register_kernel("grid_sample")
def grid_sample_kernel(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Bilinear sampling by ``grid_sample``, one call per level; exact gradients in every float type."""
    heads = value.shape[2]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B·M, D, S)
    grid = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B·M, Q, L, P, 2)
    weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)  # (B·M, 1, Q, L, P)
    output = value.new_zeros(())
    start = 0
    for level, (height, width) in enumerate(shapes):
        size = height * width
        level_map = maps[..., start : start + size].unflatten(-1, (height, width))
        sampled = F.grid_sample(
            level_map, grid[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (B·M, D, Q, P)
        output = output + (sampled * weights[:, :, :, level]).sum(-1)
        start += size
    return output.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)


def _is_plain_linear(layer: nn.Module) -> bool:
    """Whether this is torch's own linear layer and nobody watches it.

    What is computed without a call to the layer passes by a hook on it (a tap, for one) and by a layer that was put in
    its place (low-rank adaptation, quantisation).
    """
    watched = (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )
    return type(layer) is nn.Linear and not watched


class MultiScaleDeformableAttention(nn.Module):
    """Every query reads a few learned points of every feature level.

    Args:
        embed_dim: channels of queries and values.
        num_heads, num_levels, num_points: heads M, feature levels L, points P per head and level.
        kernel: name of a registered sampling kernel, or "auto" (:func:`choose_kernel`).

    Raises:
        ConfigError: unknown kernel, or one whose package is not installed.
    """

    def __init__(
        self,
        embed_dim: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        num_points: int = 4,
        kernel: str = AUTO,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        check_kernel(kernel)
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.kernel = kernel
        self.sampling_offsets = nn.Linear(embed_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(embed_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head h starts by looking in direction 2πh/M, point p at p + 1 cells; uniform attention weights."""
        angle = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        direction = torch.stack((angle.cos(), angle.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = direction[:, None, None, :] * steps[None, None, :, None]  # (M, 1, P, 2)
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        for layer in (self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(layer)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        reference: Tensor,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Sample ``value`` around the reference boxes or points.

        Args:
            query: (B, Q, C).
            reference: (B, Q, L, 4) boxes (cx, cy, w, h) or (B, Q, L, 2) points, relative to each level.
            value: flattened levels, (B, S, C).
            shapes: (H_l, W_l) of the levels, their products adding up to S.
            padding_mask: (B, S) bool, True where the value is padding and reads as zero.

        Returns:
            (B, Q, C).
        """
        locations, weights = self.sampling(query, reference, shapes)
        name = choose_kernel(value.device) if self.kernel == AUTO else self.kernel
        if self.kernel == AUTO and name == "fused" and self._is_projected_last(query, value):
            output = self._sample_and_project(value, shapes, locations, weights, padding_mask)
            return self.output_proj(output.to(query.dtype))
        value = self.value_proj(value)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.view(*value.shape[:2], self.num_heads, -1)
        # Half-precision coordinates would miss cells of a large map.
        half = value.dtype in (torch.float16, torch.bfloat16)
        if half and name not in HALF_PRECISION:
            value = value.float()
        exact = torch.float32 if half else value.dtype
        with torch.autocast(device_type=value.device.type, enabled=False):
            output = KERNELS[name](value, shapes, locations.to(exact), weights.to(exact))
        return self.output_proj(output.to(query.dtype))

    def _is_projected_last(self, query: Tensor, value: Tensor) -> bool:
        """Whether so few queries read that projecting what they read takes less than projecting every cell.

        Reads are longer then, of all channels instead of a head's. The factor is where both took equal time on a CPU.
        """
        read = query.shape[1] * self.num_heads * 4 * self.num_levels * self.num_points
        return value.shape[1] * value.shape[2] > 5 * read and _is_plain_linear(self.value_proj)

    def _sample_and_project(
        self,
        value: Tensor,
        shapes: Sequence[tuple[int, int]],
        locations: Tensor,
        weights: Tensor,
        padding_mask: Tensor | None,
    ) -> Tensor:
        """What a kernel gives of the projected value, (B, Q, C): sampling and projection are linear and commute.

        Every head of every query is a query of its own, to a value with one head.
        """
        batch, queries, heads = weights.shape[:3]
        exact = torch.float64 if value.dtype == torch.float64 else torch.float32
        locations, weights = locations.to(exact), weights.to(exact)
        with torch.autocast(device_type=value.device.type, enabled=False):
            read, total = fused_sampling(
                value.to(exact).unsqueeze(2),
                shapes,
                locations.flatten(1, 2).unsqueeze(2),
                weights.flatten(1, 2).unsqueeze(2),
                padding_mask,
            )
        kind = self.value_proj.weight.dtype
        by_head = read.to(kind).view(batch * queries, heads, -1).transpose(0, 1)  # (M, B·Q, C)
        projection = self.value_proj.weight.view(heads, -1, value.shape[2])  # (M, D, C)
        output = torch.bmm(by_head, projection.transpose(1, 2)).transpose(0, 1)  # (B·Q, M, D)
        bias = total.to(kind).view(batch * queries, heads, 1) * self.value_proj.bias.view(heads, -1)
        return (output + bias).reshape(batch, queries, -1)

    def sampling(
        self, query: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Where :meth:`forward` reads, and with which weights, as kernels take them.

        Returns:
            Locations (B, Q, M, L, P, 2) as (x, y) in units of each level's width and height.
            Weights (B, Q, M, L, P) that add up to 1 over levels and points.
        """
        batch, queries, _ = query.shape
        grid = (batch, queries, self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*grid, 2)
        weights = self.attention_weights(query).view(*grid[:3], -1).softmax(-1).view(grid)
        anchor = reference[:, :, None, :, None, :]  # (B, Q, 1, L, 1, 2 or 4)
        if reference.shape[-1] == 4:
            locations = anchor[..., :2] + offsets / self.num_points * anchor[..., 2:] * 0.5
        elif reference.shape[-1] == 2:
            heights_widths = level_table(shapes, offsets.device)[:, :2].to(offsets.dtype)
            locations = anchor + offsets / heights_widths.flip(1)[:, None, :]
        else:
            raise ValueError(f"reference must end in 2 or 4 numbers, not {reference.shape[-1]}")
        return locations, weights

    def extra_repr(self) -> str:
        return f"levels={self.num_levels}, points={self.num_points}, kernel={self.kernel!r}"
