"""Whether a layer may be computed as part of something else."""

from __future__ import annotations

from torch import nn

__all__ = ["is_plain_linear"]


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether this is torch's own linear layer and nobody watches it.

    A fused computation does not call the layer, so a hook on it (a tap, for one) would see nothing, and a layer that
    was put in its place (low-rank adaptation, quantisation) would not be asked.
    """
    watched = (
        layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    )
    return type(layer) is nn.Linear and not watched
