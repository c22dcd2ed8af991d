"""ViDT's deformable decoder: DET tokens read the feature levels and refine their boxes layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.layers import MLP, MultiScaleDeformableAttention, inverse_sigmoid

from .activation_checkpointing import checkpointed

__all__ = ["DecoderLayer", "DecoderOutput", "DeformableTransformer"]


@dataclass(frozen=True)
class DecoderOutput:
    """All levels of the decoder; level 0 is its input.

    Attributes:
        states: DET tokens that the heads read, (L+1, B, N, d).
        boxes: predicted boxes (cx, cy, w, h) in [0, 1] of every level, (L+1, B, N, 4). Level l's gradient reaches its
            box head and ``states[l]`` only (level 0's also the initial reference).
        init_reference: initial reference points, (B, N, 2).
    """

    states: Tensor
    boxes: Tensor
    init_reference: Tensor


class SelfAttention(nn.MultiheadAttention):
    """Self-attention whose values carry no position."""

    def forward(self, query: Tensor, value: Tensor) -> tuple[Tensor, None]:
        """Query (keys as well) and value (B, N, d) → (B, N, d), and None where the base class has weights."""
        batch, tokens, dim = query.shape
        weight, bias = self.in_proj_weight, self.in_proj_bias
        both = F.linear(query, weight[: 2 * dim], bias[: 2 * dim])
        query, key = both.view(batch, tokens, 2, self.num_heads, -1).unbind(2)
        value = F.linear(value, weight[2 * dim :], bias[2 * dim :]).view(batch, tokens, self.num_heads, -1)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        dropped = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropped)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


class DecoderLayer(nn.Module):
    """Self-attention among DET tokens, deformable attention to the levels, feed-forward; post-norm."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_levels: int,
        num_points: int,
        dropout: float,
        kernel: str,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.cross_attn = MultiScaleDeformableAttention(embed_dim, num_heads, num_levels, num_points, kernel)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.self_attn = SelfAttention(embed_dim, num_heads, dropout=dropout, batch_first=True)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.dropout = dropout

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(
        self,
        tokens: Tensor,
        pos: Tensor,
        reference: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
    ) -> Tensor:
        """(B, N, d) tokens -> (B, N, d); ``reference`` (B, N, levels, 4), ``memory`` (B, S, d)."""
        read = (reference, memory, shapes, padding_mask)
        return checkpointed(self.activation_checkpointing, self._update, tokens, pos, *read)

    def _update(self, tokens: Tensor, pos: Tensor, *read: Any) -> Tensor:
        update = self.self_attn(tokens + pos, tokens)[0]
        # the published names number the norms the other way round
        tokens = self.norm2(tokens + self._drop(update))
        update = self.cross_attn(tokens + pos, *read)
        tokens = self.norm1(tokens + self._drop(update))
        update = self.linear2(self._drop(F.relu(self.linear1(tokens))))
        return self.norm3(tokens + self._drop(update))


class _Decoder(nn.Module):
    def __init__(self, layers: Sequence[DecoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class DeformableTransformer(nn.Module):
    """Decoder without an encoder, with iterative box refinement.

    Args:
        embed_dim: d.
        num_heads: heads of both attentions.
        ffn_dim: hidden channels of the feed-forward layers.
        num_layers: L.
        num_levels, num_points: feature levels, and sampling points per head and level.
        dropout: probability in every layer.
        num_queries: N; needed by ``reference_init="grid"`` only.
        reference_init: "learned" (ViDT: a linear layer of the query position alone) or "grid" (the same plus one free
            point per query that starts on a regular grid, so that a short training need not spread the queries first).
        token_classes: outputs of ViDT+'s auxiliary patch-token classifier, classes + 1; None: no such head.
        kernel: deformable attention kernel; "auto": the fastest that works on the device.
        activation_checkpointing: keep the layers' inputs only and run the layers again in the backward.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 256,
        num_heads: int = 8,
        ffn_dim: int = 1024,
        num_layers: int = 6,
        num_levels: int = 4,
        num_points: int = 4,
        dropout: float = 0.1,
        num_queries: int | None = None,
        reference_init: str = "learned",
        token_classes: int | None = None,
        kernel: str = "auto",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.embed_dim, self.num_layers, self.num_levels = embed_dim, num_layers, num_levels
        # Part of published checkpoints, never used by the model.
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim), requires_grad=False)
        sizes = embed_dim, num_heads, ffn_dim, num_levels, num_points
        self.decoder = _Decoder(
            [DecoderLayer(*sizes, dropout, kernel, activation_checkpointing) for _ in range(num_layers)]
        )
        self.reference_points = nn.Linear(embed_dim, 2)
        if token_classes is not None:
            self.enc_output = nn.Linear(embed_dim, embed_dim)
            self.enc_output_norm = nn.LayerNorm(embed_dim)
            self.token_embed = nn.Linear(embed_dim, token_classes)
        self.token_classes = token_classes
        for name, parameter in self.named_parameters():
            # the deformable attention keeps its own start
            own_start = "sampling_offsets" in name or "attention_weights" in name
            if parameter.dim() > 1 and parameter.requires_grad and not own_start:
                nn.init.xavier_uniform_(parameter)
        self.reference_grid: nn.Parameter | None = None
        if reference_init == "grid":
            if num_queries is None:
                raise ValueError('reference_init="grid" needs num_queries')
            self.reference_grid = nn.Parameter(inverse_sigmoid(_grid_points(num_queries)))
            nn.init.zeros_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        elif reference_init != "learned":
            raise ValueError(f'reference_init must be "learned" or "grid", not {reference_init!r}')

    def initial_reference(self, pos: Tensor) -> Tensor:
        """Logits of the initial reference points, (B, N, d) -> (B, N, 2)."""
        logits = self.reference_points(pos)
        return logits if self.reference_grid is None else logits + self.reference_grid

    def forward(
        self,
        tokens: Tensor,
        pos: Tensor,
        memory: Tensor,
        shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None,
        valid_ratios: Tensor,
        box_heads: Sequence[MLP],
        reference: Tensor | None = None,
    ) -> DecoderOutput:
        """Decode.

        Args:
            tokens: projected DET tokens, (B, N, d).
            pos: their position, (B, N, d).
            memory: flattened feature levels, (B, S, d).
            shapes: (H_l, W_l) of the levels.
            padding_mask: (B, S) bool, True on padding.
            valid_ratios: unpadded share (width, height) of each level, (B, levels, 2).
            box_heads: L + 1 box heads; the one that refines a level's reference is the one that predicts its boxes.
            reference: initial reference points, (B, N, 2); None: those of the positions.
        """
        if reference is None:
            reference = self.initial_reference(pos).sigmoid()
        init_reference = reference
        scale = torch.cat((valid_ratios, valid_ratios), -1)[:, None]  # (B, 1, levels, 4)
        states, boxes = [], []
        for level in range(self.num_layers + 1):
            if level > 0:
                layer = self.decoder.layers[level - 1]
                tokens = layer(tokens, pos, reference[:, :, None] * scale, memory, shapes, padding_mask)
            offset = inverse_sigmoid(reference)
            if level == 0:
                offset = F.pad(offset, (0, 2))  # a point has no size yet
            box = (box_heads[level](tokens) + offset).sigmoid()
            reference = box.detach()
            states.append(tokens)
            boxes.append(box)
        return DecoderOutput(torch.stack(states), torch.stack(boxes), init_reference)

    def classify_patches(self, maps: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> list[Tensor]:
        """Class logits of every patch token (ViDT+'s token labelling), [(B, d, H, W)] -> [(B, H, W, classes)].

        Cells under padding, or whose centre or nominal size lies outside (0.01, 0.99), are zeroed before the head.
        """
        outputs = []
        for index, (feature, mask) in enumerate(zip(maps, padding_masks)):
            height, width = feature.shape[-2:]
            rows = torch.arange(height, dtype=torch.float32, device=feature.device) + 0.5
            columns = torch.arange(width, dtype=torch.float32, device=feature.device) + 0.5
            valid_h, valid_w = (~mask[:, :, 0]).sum(1).float(), (~mask[:, 0, :]).sum(1).float()
            y, x = rows[None] / valid_h[:, None], columns[None] / valid_w[:, None]
            inside = ((y > 0.01) & (y < 0.99))[:, :, None] & ((x > 0.01) & (x < 0.99))[:, None, :]
            size = 0.05 * 2.0**index
            keep = (inside & ~mask) if 0.01 < size < 0.99 else torch.zeros_like(mask)
            memory = feature.permute(0, 2, 3, 1) * keep[..., None]
            outputs.append(self.token_embed(self.enc_output_norm(self.enc_output(memory))))
        return outputs


def _grid_points(count: int) -> Tensor:
    """``count`` points spread over (0, 1)² row by row, (count, 2)."""
    columns = round(count**0.5)
    rows = -(-count // columns)
    index = torch.arange(count)
    x = (index % columns + 0.5) / columns
    y = (torch.div(index, columns, rounding_mode="floor") + 0.5) / rows
    return torch.stack((x, y), -1)
