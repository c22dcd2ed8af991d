"""What there is to draw of runs: results, objectives with their terms, weights, and how gradients pull."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

from mokd_det.visualization.run_metrics import RunMetrics, Series

__all__ = ["Quantity", "gradient_quantities", "losses", "scalar", "weights"]

ALL = "all"
"""The group of all parameters, as GradientConflict names it."""

Read = Callable[[RunMetrics], Series]


@dataclass(frozen=True)
class Quantity:
    """One quantity of a run.

    Attributes:
        title: what kind it is.
        of: whose: an objective, a pair of them, a term.
        read: its values in a run; none where the run has not logged it.
        part: group of parameters; "": not of a group.
        axis: settings of the vertical axis, see :class:`~mokd_det.visualization.chart.Chart`.
    """

    title: str
    of: str
    unit: str
    read: Read
    part: str
    axis: dict[str, Any]

    @property
    def row(self) -> str:
        """The kind with its group of parameters."""
        return f"{self.title}, {self.part}" if self.part else self.title


_RATIO = {"scale": "log", "reference": 1.0}
_GRADIENTS: Sequence[tuple[str, str, str, dict[str, Any]]] = (
    ("Inner product", "raw_inner_product/", "⟨∇L₁, ∇L₂⟩", {"scale": "symlog", "reference": 0.0}),
    ("Conflict", "cosine/", "cos(∇L₁, ∇L₂)", {"limits": (-1.03, 1.03), "reference": 0.0}),
    ("Dominance", "raw_norm_ratio/", "‖∇L₁‖ / ‖∇L₂‖", _RATIO),
    ("Dominance, logarithms", "log_norm_ratio/", "‖∇log L₁‖ / ‖∇log L₂‖", _RATIO),
)


def scalar(name: str) -> Read:
    """A logged scalar."""
    return lambda run: run.series(name)


def _objectives(runs: Sequence[RunMetrics]) -> list[str]:
    """All objectives; the one that most runs have comes first: the task, which a student alone and a teacher share."""
    names = list(dict.fromkeys(name for run in runs for name in run.objectives))
    return sorted(names, key=lambda name: -sum(name in run.objectives for run in runs))


def losses(runs: Sequence[RunMetrics]) -> list[tuple[str | None, Read, dict[str, Read]]]:
    """(objective, its sum, term → the term's sum over the decoder's levels) of each objective that has losses.

    Without a configuration the objective is None and has all losses.
    """
    found: list[tuple[str | None, Read, dict[str, Read]]] = []
    grouped: list[str | None] = [*_objectives(runs)]
    for objective in grouped or [None]:
        names = dict.fromkeys(term for run in runs for term in run.terms(objective))
        if names:
            terms = {name: _term(objective, name) for name in names}
            found.append((objective, partial(RunMetrics.objective, objective=objective), terms))
    return found


def weights(runs: Sequence[RunMetrics]) -> dict[str, Read]:
    """Objective → its weight π, in runs with several: that of a single one is always 1 and says nothing."""
    names = dict.fromkeys(name for run in runs for name in run.weights() if len(run.weights()) > 1)
    return {name: _weight(name) for name in names}


def gradient_quantities(runs: Sequence[RunMetrics]) -> list[Quantity]:
    """Conflict and dominance of every pair of objectives, by kind; in each those of no group first, then all
    parameters."""
    names = dict.fromkeys(name for run in runs for name in run.names())
    known = dict.fromkeys(name for run in runs for name in [*run.objectives, *run.weights()])
    pairs = {f"{first}_{second}": f"{first} ↔ {second}" for first, second in permutations(known, 2)}
    found = []
    for title, prefix, unit, axis in _GRADIENTS:
        of_kind = []
        for name in names:
            if name.startswith(prefix):
                pair, _, part = name.removeprefix(prefix).partition("/")
                of_kind.append(Quantity(title, pairs.get(pair, pair), unit, scalar(name), part, axis))
        found += sorted(of_kind, key=lambda quantity: ("", ALL, quantity.part).index(quantity.part))
    return found


def _term(objective: str | None, term: str) -> Read:
    return lambda run: run.series(*run.terms(objective).get(term, [""]))


def _weight(objective: str) -> Read:
    return lambda run: run.series(f"pi/{objective}" if len(run.weights()) > 1 else "")
