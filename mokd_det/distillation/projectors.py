"""Maps from the student's channels to the teacher's: the projectors that MoKD's Fig. 6 compares.

One contract, :class:`Projector`: rows (R, n_s) in, rows (R, n_t) out, with the weights of the rows (R,) for
those that take statistics over them. They exist in training only, so none keeps running statistics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mokd_det.distillation.row_losses import standardize
from mokd_det.distillation.stiefel import StiefelLinear
from mokd_det.errors import ConfigError, require_choice

__all__ = [
    "EnsembleProjector",
    "LinearProjector",
    "MLPProjector",
    "OrthogonalProjector",
    "Projector",
    "ProjectorKind",
    "build_projector",
]

ProjectorKind = Literal["linear", "orthogonal", "mlp", "ensemble"]


class Projector(nn.Module, ABC):
    """A learned map from student rows to the teacher's space."""

    @abstractmethod
    def forward(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """(R, n_s) → (R, n_t); ``weights``: (R,), 0 for the rows that statistics leave out."""


class LinearProjector(Projector):
    """One linear layer with bias."""

    def __init__(self, n_s: int, n_t: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_s, n_t)

    def forward(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.linear(rows)


class OrthogonalProjector(Projector):
    """An orthonormal matrix (orthonormal rows where n_s > n_t), then a gain and a bias per channel (VkD).

    Args:
        affine: the gain (starts at 1) and the bias (starts at 0); VkD has them for detection, not for classification.
        trainable: False: the matrix stays the random one it starts with.
    """

    def __init__(self, n_s: int, n_t: int, affine: bool = True, trainable: bool = True) -> None:
        super().__init__()
        self.linear = StiefelLinear(n_s, n_t, trainable=trainable)
        self.gain = nn.Parameter(torch.ones(n_t)) if affine else None
        self.bias = nn.Parameter(torch.zeros(n_t)) if affine else None

    def forward(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        rows = self.linear(rows)
        if self.gain is not None:
            rows = rows * self.gain + self.bias
        return rows


class MLPProjector(Projector):
    """Linear(n_s, 2 n_s), batch normalisation, ReLU, Linear(2 n_s, n_t).

    The released two-layer SimReg head has neither normalisation nor ReLU and so is a linear map; this is the
    head that its text and VkD's comparison mean.
    """

    def __init__(self, n_s: int, n_t: int, hidden: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        hidden = 2 * n_s if hidden is None else hidden
        self.eps = eps
        self.first = nn.Linear(n_s, hidden, bias=False)
        self.gain = nn.Parameter(torch.ones(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Linear(hidden, n_t)

    def forward(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        hidden = standardize(self.first(rows), weights, self.eps) * self.gain + self.bias
        return self.second(hidden.relu())


class EnsembleProjector(Projector):
    """Mean of several linear layers, each followed by a ReLU (PEFD, three of them).

    Args:
        count: number of linear layers.
        relu: False leaves the outputs signed, which a normalised teacher's targets are; the mean is then one
            linear map, over-parametrised.
    """

    def __init__(self, n_s: int, n_t: int, count: int = 3, relu: bool = True) -> None:
        super().__init__()
        if count < 1:
            raise ConfigError(f"an ensemble of count={count} projectors is empty; use at least 1")
        self.relu = relu
        self.members = nn.ModuleList(nn.Linear(n_s, n_t) for _ in range(count))

    def forward(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        outputs = (member(rows) for member in self.members)
        return torch.stack([output.relu() if self.relu else output for output in outputs]).mean(0)


_PROJECTORS: dict[str, Callable[..., Projector]] = {
    "linear": LinearProjector,
    "orthogonal": OrthogonalProjector,
    "mlp": MLPProjector,
    "ensemble": EnsembleProjector,
}


def build_projector(kind: ProjectorKind, n_s: int, n_t: int, **options: Any) -> Projector:
    """A projector by name; ``options`` of its class. A ConfigError if there is none, or it has no such option."""
    require_choice("projector", kind, ProjectorKind)
    try:
        return _PROJECTORS[kind](n_s, n_t, **options)
    except TypeError as error:
        raise ConfigError(f"projector {kind!r} with options {options}: {error}") from error
