"""How objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, permutations
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

from mokd_det.visualization.figure_style import (
    LINE_COLOURS,
    MUTED,
    draw_legend,
    figure_style,
    new_figure,
    plain_axes,
)
from mokd_det.visualization.run_metrics import RunMetrics, Series

__all__ = ["dynamics_figure"]

# The group of all parameters, as GradientConflict names it.
_WHOLE = "all"

_PANEL_WIDTH, _PANEL_HEIGHT = 3.6, 1.9


@dataclass(frozen=True)
class _Row:
    """One quantity of every run, with a common scale."""

    title: str
    unit: str
    lines: Sequence[dict[str, Series]]
    limits: tuple[float, float] | None = None
    scale: Literal["linear", "log", "symlog"] = "linear"
    reference: float | None = None
    note: bool = False


def dynamics_figure(runs: Sequence[RunMetrics], *, title: str = "") -> Figure:
    """One column per run, one row per quantity, with equal scales along a row.

    Rows: the losses of the objectives and their weights π. Then the preprint's figures 3 and C.4, which are of the raw
    gradients ∇L: conflict as the inner product ⟨∇L_a, ∇L_b⟩ (``raw_inner_product/…``) and as its cosine
    (``cosine/…``, that of the logarithms too), dominance ‖∇L_a‖ / ‖∇L_b‖ (``raw_norm_ratio/…``). Then the dominance of
    ∇log L, which balancers of logarithms see (``log_norm_ratio/…``). Cosine and raw dominance have a row for each
    parameter group that is logged. A row that no run has logged is left out; the axes of a run that lacks one say so.
    With ``train.conflict_period=1`` and ``train.log_period=1`` the lines have a point per iteration.

    Args:
        runs: from :func:`~mokd_det.visualization.run_metrics.read_run`.
        title: above everything.

    Raises:
        ValueError: no runs, or none with anything to draw.
    """
    rows = [row for row in _rows(runs) if any(row.lines)]
    if not rows:
        raise ValueError("none of the runs has logged losses, weights, conflict or dominance")
    names = [name for row in rows for lines in row.lines for name in lines]
    colours = dict(zip(dict.fromkeys(names), cycle(LINE_COLOURS[1:])))
    with figure_style():
        head = 0.35 if title else 0.05
        height = _PANEL_HEIGHT * len(rows) + 0.3 + head
        figure = new_figure(max(_PANEL_WIDTH * len(runs) + 0.4, 4.5), height)
        if title:
            figure.text(0.012, 1 - 0.08 / height, title, fontsize=12, fontweight="bold", va="top")
        grid = figure.subplots(len(rows), len(runs), squeeze=False, sharex=True)
        end = max(int(run.records[-1]["iteration"]) for run in runs)
        for i, row in enumerate(rows):
            for j, run in enumerate(runs):
                axes = grid[i, j]
                _draw(
                    axes,
                    row,
                    row.lines[j],
                    colours,
                    "one objective" if len(run.objectives) == 1 else "not logged",
                )
                axes.set_xlim(0, end * 1.02)
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
                if i == 0:
                    axes.set_title(run.label, fontsize=11, fontweight="bold", pad=8)
                if i == len(rows) - 1:
                    axes.set_xlabel("iteration")
                if j == 0:
                    axes.set_ylabel(f"{row.title}\n{row.unit}")
                else:
                    axes.tick_params(which="both", labelleft=False)
        figure.align_ylabels(grid[:, 0])
        figure.set_layout_engine(
            "constrained", rect=(0, 0, 1, 1 - head / height), w_pad=0.07, h_pad=0.06, wspace=0.02, hspace=0.02
        )
    return figure


def _rows(runs: Sequence[RunMetrics]) -> list[_Row]:
    losses = [_losses(run) for run in runs]
    # The weight of a single objective is always 1 and tells nothing.
    weights = [run.weights() if len(run.weights()) > 1 else {} for run in runs]
    rows = [
        _Row("Losses", "sum per objective", losses, _log_limits(losses), scale="log"),
        _Row("Weights", "π", weights, (0.0, 1.03)),
    ]
    for title, inner in _by_group("Inner product", "raw_inner_product/", runs, _WHOLE).items():
        limits = _signed_limits(inner)
        rows.append(_Row(title, "⟨∇L₁, ∇L₂⟩", inner, limits, scale="symlog", reference=0.0))
    for title, cosines in _by_group("Conflict", "cosine/", runs).items():
        rows.append(_Row(title, "cos(∇L₁, ∇L₂)", cosines, (-1.03, 1.03), reference=0.0, note=True))
    for title, prefix, unit, only in (
        ("Dominance", "raw_norm_ratio/", "‖∇L₁‖ / ‖∇L₂‖", None),
        ("Dominance, logarithms", "log_norm_ratio/", "‖∇log L₁‖ / ‖∇log L₂‖", _WHOLE),
    ):
        for row_title, ratios in _by_group(title, prefix, runs, only).items():
            limits = _log_limits(ratios, around=1.0)
            rows.append(_Row(row_title, unit, ratios, limits, scale="log", reference=1.0))
    return rows


def _losses(run: RunMetrics) -> dict[str, Series]:
    grouped = {name: run.objective(name) for name in run.objectives if run.losses(name)}
    return grouped or {name: run.series(*losses) for name, losses in run.terms().items()}


def _by_group(
    title: str, prefix: str, runs: Sequence[RunMetrics], only: str | None = None
) -> dict[str, list[dict[str, Series]]]:
    """Title of a row → its lines, run by run: a row for each parameter group, or for one group and the plain names."""
    found = [_prefixed(run, prefix) for run in runs]
    # Those of the balancer itself, without a group, come first.
    named = dict.fromkeys(
        group for lines in found for _, group in lines if only in (None, group) or not group
    )
    groups = sorted(named, key=bool)
    return {
        f"{title}, {group}" if group else title: [
            {pair: series for (pair, of_group), series in lines.items() if of_group == group}
            for lines in found
        ]
        for group in groups
    }


def _prefixed(run: RunMetrics, prefix: str) -> dict[tuple[str, str], Series]:
    """(pair of objectives, parameter group or "") → its values."""
    objectives = dict.fromkeys([*run.objectives, *run.weights()])
    pairs = {f"{first}_{second}": f"{first} ↔ {second}" for first, second in permutations(objectives, 2)}
    lines = {}
    for name in run.names():
        if name.startswith(prefix):
            pair, _, group = name.removeprefix(prefix).partition("/")
            lines[pairs.get(pair, pair), group] = run.series(name)
    return lines


def _log_limits(
    lines: Sequence[dict[str, Series]], around: float | None = None
) -> tuple[float, float] | None:
    values = np.concatenate([np.zeros(0), *(series[1] for run in lines for series in run.values())])
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return None
    low, high = float(values.min()), float(values.max())
    if around is not None:
        low, high = min(low, around), max(high, around)
    return low / 1.3, high * 1.3


def _signed_limits(lines: Sequence[dict[str, Series]]) -> tuple[float, float] | None:
    """Symmetric about 0."""
    values = np.concatenate([np.zeros(0), *(np.abs(s[1]) for run in lines for s in run.values())])
    values = values[np.isfinite(values) & (values > 0)]
    return (-1.5 * float(values.max()), 1.5 * float(values.max())) if len(values) else None


def _draw(axes: Axes, row: _Row, lines: dict[str, Series], colours: dict[str, str], absent: str) -> None:
    plain_axes(axes)
    if row.scale == "symlog" and row.limits is not None:
        # Linear within a thousandth of the largest value: its sign is the message.
        axes.set_yscale("symlog", linthresh=row.limits[1] / 1e3)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=row.limits[1] / 10))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value else "0"))
    if row.scale == "log":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if row.limits is not None:
        axes.set_ylim(row.limits)
    if not lines:
        axes.text(0.5, 0.5, absent, transform=axes.transAxes, ha="center", va="center", color=MUTED)
        return
    if row.reference is not None:
        axes.axhline(row.reference, color=MUTED, linewidth=0.9, linestyle="--")
    handles, labels = [], []
    for name, (iterations, values) in lines.items():
        label = name
        if row.note:
            label += f": negative in {np.mean(values < 0):.0%} of the records"
        handles += axes.plot(iterations, values, color=colours[name], linewidth=1.4)
        labels.append(label)
    draw_legend(axes, handles, labels, loc="best", handlelength=1.6, labelspacing=0.3)
