"""What tells one family of Hugging Face detectors from another: pixels, sizes, heads, losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mokd_det.errors import ConfigError

__all__ = ["FAMILIES", "REFUSED", "Family", "family_of"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Family:
    """One row of the table in docs/transformers.md.

    Attributes:
        style: which taps reader is its (``mokd_det.modeling.transformers_taps.READERS``).
        processor: transformers' image processor for it.
        normalizes: whether pixels are normalised by ImageNet's statistics, or only scaled to 0..1.
        masks: whether the model is told which pixels are padding.
        side: the square that images are resized to unless a processor's settings or ``image_size`` say otherwise;
            0: images keep their sizes.
        softmax: whether the classes are K + 1 by softmax, the last "no object"; otherwise K by sigmoid.
        detections: found per image, as transformers' post-processing; 0: one per query.
        weighted: whether ``loss_dict`` is weighted already, so that it sums to ``loss``.
        antialias: whether images are resized as others do; False: by plain interpolation of floats (RF-DETR), which
            differs a lot where images shrink.
        level_first: whether the stacked decoder states are (L, B, N, C), not (B, L, N, C).
    """

    style: str
    processor: str
    normalizes: bool = True
    masks: bool = True
    side: int = 0
    softmax: bool = False
    detections: int = 0
    weighted: bool = False
    antialias: bool = True
    level_first: bool = False

    def divisor(self, config: Any) -> int:
        """What the sides of the model's input must be multiples of."""
        backbone: Any = getattr(config, "backbone_config", None)
        if self.style == "hybrid":
            return max(config.feat_strides)
        if config.model_type == "lw_detr":
            return int(backbone.patch_size * backbone.num_windows_side)
        if config.model_type == "rf_detr":
            return int(backbone.patch_size * backbone.num_windows)
        return int(config.patch_size) if self.style == "yolos" else 1

    def is_square(self, config: Any) -> bool:
        """Whether the model computes rightly for square inputs only (windows that mix up the two sides)."""
        return config.model_type == "rf_detr" and config.backbone_config.num_windows > 1

    def default_size(self, config: Any) -> tuple[int, int] | None:
        """The square of the family, as the model's divisor allows."""
        if not self.side:
            return None
        divisor = self.divisor(config)
        side = math.ceil(self.side / divisor) * divisor
        return side, side

    def losses(self, config: Any, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weighted losses of a ``loss_dict``, whose sum is the model's own ``loss``.

        What is no loss (``cardinality_error``) is left out. ``loss_ddf``, a divergence, is rounded to as little as
        −1e-7 where it is 0, which would end a logarithm: it is lifted to 0, its gradient kept.
        """
        weights: dict[str, float] = {}
        if not self.weighted:
            weights = {part: float(getattr(config, f"{part}_loss_coefficient")) for part in ("bbox", "giou")}
            grouped = self.style == "grouped"
            weights["ce"] = float(getattr(config, "class_loss_coefficient", 1.0)) if grouped else 1.0
        chosen = {}
        for name, value in parts.items():
            kind, part = (*name.split("_"), "")[:2]
            if kind != "loss" or not (self.weighted or part in weights):
                continue
            if part == "ddf":
                value = value - value.detach().clamp(-1e-5, 0.0)
            chosen[name] = value if self.weighted or weights[part] == 1.0 else value * weights[part]
        return chosen


_DETR = Family("detr", "DetrImageProcessor", softmax=True)
_RT_DETR = Family("hybrid", "RTDetrImageProcessor", normalizes=False, masks=False, side=640, weighted=True)
_D_FINE = replace(_RT_DETR, level_first=True)

FAMILIES: dict[str, Family] = {
    "rt_detr": _RT_DETR,
    "rt_detr_v2": _RT_DETR,
    "d_fine": _D_FINE,
    "deimv2": _D_FINE,
    "deformable_detr": Family("deformable", "DeformableDetrImageProcessor", detections=100),
    "conditional_detr": Family("detr", "ConditionalDetrImageProcessor", detections=100),
    "dab-detr": Family("detr", "ConditionalDetrImageProcessor", detections=100),
    "detr": _DETR,
    "table-transformer": _DETR,
    "yolos": Family("yolos", "YolosImageProcessor", masks=False, side=800, softmax=True),
    "lw_detr": Family("grouped", "DeformableDetrImageProcessor", side=640, detections=100),
    "rf_detr": Family("grouped", "RfDetrImageProcessor", side=560, antialias=False),
}
"""``model_type`` of transformers → its family."""

_LAYOUT = "it orders the parts of a document's page and has no training loss for boxes in transformers"
_TEXT = "it segments text and predicts a map of probabilities, not boxes and classes of queries"

REFUSED: dict[str, str] = {
    "pp_doclayout_v2": _LAYOUT,
    "pp_doclayout_v3": _LAYOUT,
    "pp_doclayout_v4": _LAYOUT,
    "pp_ocrv5_mobile_det": _TEXT,
    "pp_ocrv5_server_det": _TEXT,
    "pp_ocrv6_medium_det": _TEXT,
    "pp_ocrv6_small_det": _TEXT,
}
"""``model_type`` of what transformers calls object detection too → why it is not served."""


def family_of(config: Any, where: str) -> Family:
    """The family of a transformers configuration; ``where``: how messages name its source.

    Raises:
        ConfigError: a model that is no detector, that is refused, or that has settings which cannot be distilled.
    """
    kind = config.model_type
    if kind in REFUSED:
        raise ConfigError(f"{where}: {kind} cannot be distilled: {REFUSED[kind]}")
    if kind not in FAMILIES:
        raise ConfigError(f"{where}: {kind} is no object detector; there are {', '.join(sorted(FAMILIES))}")
    dropped = max(getattr(config, f"{part}_layerdrop", 0.0) or 0.0 for part in ("encoder", "decoder"))
    if dropped > 0:
        raise ConfigError(
            f"{where}: layerdrop {dropped} leaves out whole layers at random, so that levels have no partner to be "
            f"compared with; set encoder_layerdrop and decoder_layerdrop to 0"
        )
    if kind == "yolos" and getattr(config, "auxiliary_loss", False):
        raise ConfigError(
            f"{where}: YOLOS's auxiliary_loss=True fails in transformers itself; set it to False"
        )
    family = FAMILIES[kind]
    if kind == "deimv2" and getattr(config.backbone_config, "model_type", "") == "dinov3_vit":
        return replace(family, normalizes=True)
    return family
