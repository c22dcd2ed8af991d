"""Controls of a balancer: weights that another run learned, as their mean or replayed in time."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mokd_det.errors import ConfigError, require_choice

from .base import Balancer, Forward, StepContext
from .log_objective import LogObjective, PerObjective
from .single_backward import adaptive_backward, weighted_backward

__all__ = ["MeanOf", "RecordedWeights", "Replay"]

WeightsOf = Literal["losses", "logarithms"]
_SCALAR: dict[str, str] = {"losses": "raw_weight", "logarithms": "pi"}


class RecordedWeights(Balancer):
    """Open-loop weights: what this run's losses do has no effect on them.

    A run logs the medians of the last 20 iterations at each ``train.log_period`` (``metrics.json``).

    Args:
        run: output directory of a run with the same objectives and a balancer that logs weights.
        of: "losses": its factors of ∇L_i (``raw_weight/…``) are applied to the losses; "logarithms": its π
            (``pi/…``) to their logarithms, as it did itself.
        total: with "logarithms": sum of the weights of the ∇L_i; None: Σ π_i ∇log D_i as it is.
        min_losses, eps: with "logarithms", see :class:`LogObjective`.

    Raises:
        ConfigError: a value out of range; (in :meth:`setup`) no such run, or none with these objectives' weights.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        of: WeightsOf = "losses",
        total: float | None = 1.0,
        min_losses: PerObjective = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        require_choice("balancer.of", of, WeightsOf)
        self.run, self.of, self.total = run, of, total
        self.requires_positive = of == "logarithms"
        self._log = LogObjective(min_losses, eps, total)
        self._iterations = torch.zeros(0, dtype=torch.float64)
        self._table = torch.zeros(0, 0, dtype=torch.float64)

    def setup(self, objectives: Sequence[str], device: Any = "cpu") -> None:
        super().setup(objectives, device)
        self._log.setup(self.objectives, device)
        self._device = device
        self._iterations, self._table = _read(self.run, _SCALAR[self.of], self.objectives)

    @abstractmethod
    def weights_at(self, iteration: int) -> np.ndarray:
        """Weights (K,) of a step."""

    def backward(self, forwards: Sequence[Forward], context: StepContext) -> Mapping[str, Tensor | float]:
        weights = torch.from_numpy(self.weights_at(context.iteration)).to(self._device)
        if self.of == "losses":
            weighted_backward(forwards, context, weights)
            return self._named("raw_weight", weights)
        _, raw = adaptive_backward(forwards, context, lambda losses: self._log.raw_weights(weights, losses))
        return self._named("pi", weights) | self._named("raw_weight", raw)

    def _state(self) -> dict[str, Any]:
        """A resumed run goes on with the weights that it began with, whatever has become of the other."""
        return {"iterations": self._iterations.clone(), "weights": self._table.clone()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._iterations, self._table = state["iterations"].cpu(), state["weights"].cpu()


class MeanOf(RecordedWeights):
    """Σ w̄_i L_i with w̄ the mean over a finished run's records: what is left of a balancer without its adaptivity.

    With two objectives a weight is one number, which a sweep finds too (Kurin et al. 2022, Xin et al. 2022). Where this
    control equals the run it comes from, the balancer has saved the sweep and no more.

    Args: as :class:`RecordedWeights`; ``of="logarithms"`` holds the mean π on the logarithms instead.
    """

    def weights_at(self, iteration: int) -> np.ndarray:
        return self._table.numpy().mean(axis=0)


class Replay(RecordedWeights):
    """π(t) of another run (another seed, say), open loop: a schedule in the place of feedback.

    Linear between that run's records, constant before the first and after the last. Where this control equals the run
    it comes from, the balancer is a schedule: nothing that it does depends on this run's gradients.

    Args: as :class:`RecordedWeights`; ``of="losses"`` replays the factors of the ∇L_i instead of π.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        of: WeightsOf = "logarithms",
        total: float | None = 1.0,
        min_losses: PerObjective = 0.0,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(run, of, total, min_losses, eps)

    def weights_at(self, iteration: int) -> np.ndarray:
        iterations = self._iterations.numpy()
        return np.array([np.interp(iteration, iterations, column) for column in self._table.numpy().T])


def _read(run: str | os.PathLike[str], scalar: str, objectives: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Iterations (T,) and weights (T, K), float64."""
    # Reading a run is nothing that training needs otherwise.
    from mokd_det.visualization.run_metrics import read_run

    metrics = read_run(run)
    names = [f"{scalar}/{objective}" for objective in objectives]
    rows = [
        (record["iteration"], *(record[name] for name in names))
        for record in metrics.records
        if all(isinstance(record.get(name), (int, float)) for name in names)
    ]
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(names) + 1)
    table = table[np.isfinite(table).all(axis=1)]
    if not len(table):
        found = [name for name in metrics.names() if name.startswith(f"{scalar}/")]
        raise ConfigError(
            f"balancer.run: {run} has not logged {', '.join(names)}; "
            + (f"it has {', '.join(found)}" if found else f"its balancer logs no {scalar}/…")
        )
    return torch.from_numpy(table[:, 0].copy()), torch.from_numpy(table[:, 1:].copy())
