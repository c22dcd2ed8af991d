"""Published gradient balancers from the torchjd package, under this package's correctness guarantees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mokd_det.errors import ConfigError

from .base import StepContext
from .gram_balancer import GramBalancer
from .log_objective import PerObjective

__all__ = ["TORCHJD_METHODS", "TorchJD"]

TORCHJD_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "aligned_mtl": ("AlignedMTLWeighting", {}),
    "cagrad": ("CAGradWeighting", {"c": 0.5}),
    "dualproj": ("DualProjWeighting", {}),
    "fairgrad": ("FairGradWeighting", {"alpha": 1.0}),
    "imtl_g": ("IMTLGWeighting", {}),
    "krum": ("KrumWeighting", {"n_byzantine": 0}),
    "mgda": ("MGDAWeighting", {}),
    "pcgrad": ("PCGradWeighting", {}),
    "upgrad": ("UPGradWeighting", {}),
}
"""Name → torchjd's weighting of a Gram matrix and the arguments it gets unless configured."""


class TorchJD(GramBalancer):
    """w = method(G), update Σ w_i ∇L_i, for every stateless torchjd method that needs the Gram matrix alone.

    torchjd's own engine neither averages over data-parallel processes nor accumulates micro-batches; here its
    weighting receives the Gram matrix of gradients that already are averaged over both. Methods that draw
    random orders (PCGrad) draw them from the iteration number: the same on every rank and after a resume.

    Methods that keep a history (GradVac, PCD, Nash-MTL, …) are left out because torchjd offers no way to save it, and
    so are those that need whole gradients or act on them element by element (ConFIG, GradDrop, trimmed mean). MGDA here
    is torchjd's Frank–Wolfe iteration, a baseline: :class:`ClosedForm` solves the same problem exactly.

    Args:
        method: one of ``TORCHJD_METHODS``.
        log_gradients: weigh ∇log D_i instead of ∇L_i.
        update_every: weights are computed in one of this many steps and applied in all.
        seed: start of the random orders.
        min_losses, trunk_only: see :class:`GramBalancer`.
        total: likewise; with None the ∇log D_i of an objective near 0 is large.
        **arguments: for torchjd's weighting, for example ``c`` of CAGrad (default 0.5) or ``alpha`` of FairGrad
            (default 1, proportional fairness).

    Raises:
        ConfigError: unknown method or argument, or torchjd (or what the method needs besides) is not installed.
    """

    def __init__(
        self,
        method: str,
        log_gradients: bool = False,
        update_every: int = 1,
        seed: int = 0,
        min_losses: PerObjective = 0.0,
        total: float | None = None,
        trunk_only: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(log_gradients, update_every, min_losses, total=total, trunk_only=trunk_only)
        if method not in TORCHJD_METHODS:
            raise ConfigError(f"balancer.method must be one of {', '.join(TORCHJD_METHODS)}, not {method!r}")
        self.method, self.seed = method, seed
        class_name, defaults = TORCHJD_METHODS[method]
        try:
            from torchjd import aggregation
        except ImportError as error:
            raise ConfigError(
                f"balancer.method = '{method}' needs the package torchjd: pip install torchjd"
            ) from error
        try:
            self._weighting = getattr(aggregation, class_name)(**{**defaults, **arguments})
        except (AttributeError, ImportError) as error:
            raise ConfigError(f"balancer.method = '{method}' cannot be used here: {error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"balancer.method = '{method}' does not take {arguments}: {error}") from error

    def solve(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        matrix = gram.cpu()
        if not bool(matrix.isfinite().all()):
            return torch.full_like(gram.diagonal(), torch.nan)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would reseed the accelerators too.
            torch.default_generator.manual_seed(self.seed + context.iteration)
            weights = self._weighting(matrix)
        return weights.to(gram)
