"""What the parts of a timm network deliver, told without running it."""

from __future__ import annotations

from typing import Any

from torch import nn

from mokd_det.layers.tap_point import TapSpec

__all__ = ["has_separate_features", "is_plain_transformer", "timm_tap_specs"]


def has_separate_features(network: nn.Module) -> bool:
    """Whether the network runs as timm's do, ``forward_head(forward_features(images))``."""
    return all(callable(getattr(network, name, None)) for name in ("forward_features", "forward_head"))


def is_plain_transformer(network: nn.Module) -> bool:
    """Whether the network keeps one set of patch tokens (B, N, C) from its first block to its last, as a ViT does."""
    return hasattr(network, "blocks") and hasattr(getattr(network, "patch_embed", None), "grid_size")


def timm_tap_specs(network: Any) -> dict[str, TapSpec]:
    """The taps "pooled", "maps" and "tokens", as far as a timm network gives them.

    Args:
        network: see :func:`has_separate_features`.
    """
    specs = {}
    if isinstance(getattr(network, "num_features", None), int):
        specs["pooled"] = TapSpec("vectors", (network.num_features,))
    levels = list(getattr(network, "feature_info", None) or ())
    if is_plain_transformer(network):
        specs.update(_plain_transformer(network))
    elif levels and hasattr(network, "forward_intermediates"):
        channels = {level["reduction"]: level["num_chs"] for level in levels}
        strides = tuple(sorted(channels))
        specs["maps"] = TapSpec("maps", tuple(channels[stride] for stride in strides), strides)
    return specs


def _plain_transformer(network: Any) -> dict[str, TapSpec]:
    specs = {}
    embedding = network.patch_embed
    height, width = embedding.patch_size
    if height == width:
        specs["maps"] = TapSpec("maps", (network.num_features,), (height,))
    if hasattr(network, "forward_intermediates"):
        fixed = getattr(embedding, "strict_img_size", True)
        specs["tokens"] = TapSpec(
            "tokens",
            (network.embed_dim,),
            num_tokens=embedding.num_patches if fixed else None,
            num_levels=len(network.blocks),
        )
    return specs
