"""Memory for time: blocks that keep their inputs only and are run again in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpointed"]


def checkpointed(enabled: bool, function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)``; if enabled and a graph is built, without keeping what happens inside.

    The second run draws the random numbers of the first, so that gradients do not change, dropout and stochastic depth
    included. Several backward passes through one graph, as the exact balancers make, are possible; each runs the
    function again. Forward hooks of modules inside are called by every run.
    """
    if not enabled or not torch.is_grad_enabled() or torch.jit.is_tracing():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)
