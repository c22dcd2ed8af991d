"""Classification checkpoints of Swin Transformer, by their authors' names and by timm's, as backbone weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

__all__ = ["NOT_IN_CLASSIFIERS", "backbone_weights", "is_timm_layout", "microsoft_names"]

# The classifier's own tensors, and masks for the one image size it was trained on.
_CLASSIFIER_ONLY = re.compile(r"(norm|head)\.|.*\.attn_mask$")

_DOWNSAMPLE = re.compile(r"layers\.(\d+)\.downsample\.")

NOT_IN_CLASSIFIERS = (
    "det_token",
    "det_pos_embed",
    "norm[123].*",
    "layers.3.downsample.*",
    "layers.*.downsample.expansion.*",
    "layers.*.downsample.norm2.*",
    "layers.*.blocks.*.det_pos_linear.*",
    "layers.*.blocks.*.attn.relative_position_index",
)
"""``fnmatch`` patterns of the tensors of a backbone with DET tokens that a classifier cannot fill.

``relative_position_index`` is a constant that timm does not store.
"""


def is_timm_layout(weights: Mapping[str, Tensor]) -> bool:
    """Whether patch merging is numbered by the stage it leads to (timm), not by the one it follows (Microsoft)."""
    stages = {found[1] for found in map(_DOWNSAMPLE.match, weights) if found is not None}
    return bool(stages) and "0" not in stages


def microsoft_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's tensors under Microsoft's names, whichever of the two layouts they come in."""
    if not is_timm_layout(weights):
        return dict(weights)

    def renamed(key: str) -> str:
        key = _DOWNSAMPLE.sub(lambda found: f"layers.{int(found[1]) - 1}.downsample.", key)
        return key.replace("head.fc.", "head.")

    return {renamed(key): value for key, value in weights.items()}


def backbone_weights(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """A classifier's tensors under the names of :class:`mokd_det.modeling.backbone.SwinRAM`, and the names of its own
    ones, which are left out."""
    named = microsoft_names(weights)
    dropped = tuple(key for key in named if _CLASSIFIER_ONLY.match(key))
    return {key: value for key, value in named.items() if key not in dropped}, dropped
