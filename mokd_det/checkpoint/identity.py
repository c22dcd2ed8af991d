"""What a set of weights looks like: which model, which variant, whose names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mokd_det.checkpoint.official_vidt import is_official_layout
from mokd_det.checkpoint.swin import is_timm_layout

__all__ = ["Identity", "identify"]

_VARIANTS: dict[tuple[int, tuple[int, ...]], str] = {
    (48, (2, 2, 6, 2)): "nano",
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}

_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
_PLUS = ("fusion.", "iou_embed.", "transformer.token_embed.")
_BIAS_TABLE = "layers.0.blocks.0.attn.relative_position_bias_table"


@dataclass(frozen=True)
class Identity:
    """What weights look like; what cannot be told is "" or None.

    Attributes:
        family: "ViDT", "ViDT+" or "Swin" (a classifier).
        layout: whose names the tensors have: "official" (published ViDT), "mokd_det", "microsoft" or "timm".
        training: the file also holds the state of one of our trainings.
        variant: "nano", "tiny", "small", "base" or "large".
        embed_dim: channels of the backbone's first stage.
        depths: blocks per stage of the backbone.
        window_size: side of its attention windows.
        num_classes: rows of the class head.
        num_queries: DET tokens.
        examples: the first names, for messages about weights of no known kind.
    """

    family: str = ""
    layout: str = ""
    training: bool = False
    variant: str = ""
    embed_dim: int | None = None
    depths: tuple[int, ...] = ()
    window_size: int | None = None
    num_classes: int | None = None
    num_queries: int | None = None
    decoder_layers: int | None = None
    examples: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """One of "vidt", "vidt+", "student", "training", "swin", "timm swin", "unknown".

        The first two are official files, the next two ours: weights alone, and with the state of a training.
        """
        if self.layout == "mokd_det":
            return "training" if self.training else "student"
        if self.family == "Swin":
            return "timm swin" if self.layout == "timm" else "swin"
        return self.family.lower() or "unknown"

    @property
    def name(self) -> str:
        """Family and variant, e.g. "ViDT-tiny"."""
        if self.variant:
            return f"{self.family}-{self.variant}"
        if self.embed_dim is None:
            return f"{self.family} with another backbone"
        return f"{self.family} of {self.embed_dim} channels with {'-'.join(map(str, self.depths))} blocks"

    def __str__(self) -> str:
        if not self.family:
            return f"no model known here (its first tensors: {', '.join(self.examples)})"
        details = [
            f"{count} {word}"
            for count, word in (
                (self.num_classes, "classes"),
                (self.num_queries, "queries"),
                (self.decoder_layers, "decoder layers"),
            )
            if count is not None
        ]
        if self.window_size not in (None, 7):
            details.append(f"windows of {self.window_size}")
        suffix = f" ({', '.join(details)})" if details else ""
        return f"{'the classifier ' if self.family == 'Swin' else ''}{self.name}{suffix}"


def identify(weights: Mapping[str, Any]) -> Identity:
    """Tell what weights are from names and shapes alone.

    Args:
        weights: a state dict, or a whole file as :func:`mokd_det.checkpoint.load_file` returns it.
    """
    training = False
    if isinstance(weights.get("model"), Mapping):
        training, weights = "trainer" in weights, weights["model"]
    if "class_embed.0.weight" in weights and "tgt_proj.0.weight" in weights:
        return Identity(
            family="ViDT+" if any(key.startswith(_PLUS) for key in weights) else "ViDT",
            layout="official" if is_official_layout(weights) else "mokd_det",
            training=training,
            num_classes=_size(weights, "class_embed.0.weight", 0),
            num_queries=_size(weights, "backbone.det_token", 1),
            decoder_layers=len(
                {k.split(".")[3] for k in weights if k.startswith("transformer.decoder.layers.")}
            ),
            **_swin_sizes(weights, "backbone."),
        )
    if _BIAS_TABLE in weights and "det_token" not in weights:
        timm = is_timm_layout(weights)
        head = "head.fc.weight" if "head.fc.weight" in weights else "head.weight"
        return Identity(
            family="Swin",
            layout="timm" if timm else "microsoft",
            num_classes=_size(weights, head, 0),
            **_swin_sizes(weights, ""),
        )
    return Identity(examples=tuple(list(weights)[:3]))


def _size(weights: Mapping[str, Tensor], key: str, dim: int) -> int | None:
    return weights[key].shape[dim] if key in weights and weights[key].dim() > dim else None


def _swin_sizes(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Fields of the backbone, if it is a Swin."""
    table = weights.get(prefix + _BIAS_TABLE)
    blocks = {
        (int(found[1]), int(found[2]))
        for found in (_BLOCK.match(key, len(prefix)) for key in weights if key.startswith(prefix))
        if found is not None
    }
    if table is None or not blocks:
        return {}
    stages = max(stage for stage, _ in blocks) + 1
    depths = tuple(sum(stage == i for stage, _ in blocks) for i in range(stages))
    embed_dim = _size(weights, prefix + "layers.0.blocks.0.norm1.weight", 0)
    variant = "" if embed_dim is None else _VARIANTS.get((embed_dim, depths), "")
    # the table has a row for each of (2·side - 1)² displacements
    side = (round(len(table) ** 0.5) + 1) // 2
    return {"embed_dim": embed_dim, "depths": depths, "window_size": side, "variant": variant}
