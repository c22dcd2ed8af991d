"""A frozen model whose BatchNorms normalise by the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["batch_statistics"]


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm of ``model`` use the batch's mean and variance; its running statistics stay as they are."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    modes = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracks) in zip(norms, modes, strict=True):
            norm.training, norm.track_running_stats = training, tracks
