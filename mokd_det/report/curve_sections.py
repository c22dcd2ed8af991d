"""What was logged over the iterations: results, losses, weights, conflict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import Section, metric_titles
from mokd_det.visualization.chart import Chart, Curve
from mokd_det.visualization.figure_style import LINE_STYLES
from mokd_det.visualization.inline_svg import page_colour
from mokd_det.visualization.run_metrics import RunMetrics
from mokd_det.visualization.run_quantities import Read, gradient_quantities, losses, scalar, weights

__all__ = ["conflict_section", "losses_section", "results_section", "weights_section"]


def results_section(groups: Sequence[RunGroup]) -> Section:
    """The evaluation results over the iterations."""
    names = list(dict.fromkeys(n for group in groups for run in group.runs for n in run.result_names()))
    titles = metric_titles(names)
    charts = [
        _chart(groups, f"{titles[name]} on the validation data", scalar(name), "percent", from_zero=True)
        for name in names
    ]
    charts = [chart for chart in charts if any(np.isfinite(curve.y).any() for curve in chart.curves)]
    evaluated = [group for group in groups if group.first.result_names()]
    several = any(len(group.runs) > 1 for group in evaluated)
    data = {
        "groups": evaluated,
        "charts": charts[:3],
        "more": [("More metrics", charts[3:])],
        "note": "Line: mean of the seeds; band: from the worst to the best." if several and charts else "",
        "absent": "Nothing was evaluated during the training (train.eval_period, dataloader.evaluator).",
    }
    return Section("results", "Results", "Accuracy over time", "curves", data)


def losses_section(groups: Sequence[RunGroup]) -> Section:
    """The objectives' losses, then their terms."""
    totals, terms = [], []
    for objective, total, parts in losses(_metrics(groups)):
        title = "All losses" if objective is None else f"Objective “{objective}”"
        totals.append(_chart(groups, title, total, "sum of its losses, logarithmic", scale="log"))
        terms += [_chart(groups, f"loss_{term}", read, from_zero=True) for term, read in parts.items()]
    data = {
        "groups": groups,
        "charts": totals,
        "more": [(f"Each of the {len(terms)} terms, summed over the decoder's levels", terms)],
        "absent": "No losses were logged.",
    }
    return Section("losses", "Losses", "Losses", "curves", data)


def weights_section(groups: Sequence[RunGroup]) -> Section:
    """π over the iterations, of the runs with more than one objective."""
    balanced = [group for group in groups if len(group.first.metrics.weights()) > 1]
    charts = [
        _chart(balanced, f"π of “{name}”", read, limits=(0.0, 1.0))
        for name, read in weights(_metrics(balanced)).items()
    ]
    data = {
        "intro": "How much of each step's direction every objective gets; the weights of a step add up to 1.",
        "groups": balanced,
        "charts": charts,
        "more": [],
        "absent": "No run has more than one objective to weigh.",
    }
    return Section("weights", "Weights", "Weights of the objectives", "curves", data)


def conflict_section(groups: Sequence[RunGroup]) -> Section:
    """Conflict and dominance of the objectives' gradients, and what the method says of its subspaces."""
    kinds: dict[str, list[Chart]] = {}
    for one in gradient_quantities(_metrics(groups)):
        title = f"{one.title} of {one.of}{f', {one.part}' if one.part else ''}"
        kinds.setdefault(one.title, []).append(_chart(groups, title, one.read, one.unit, **one.axis))
    subspaces = [
        _chart(
            groups,
            f"{title}, {name.removesuffix(f'/{suffix}').removeprefix('distill/')}",
            scalar(name),
            from_zero=True,
        )
        for suffix, title in (
            ("target_effective_rank", "Effective rank of the target"),
            ("negative_metric", "Negative entries of D"),
        )
        for name in dict.fromkeys(name for run in _metrics(groups) for name in run.names())
        if name.endswith(f"/{suffix}")
    ]
    logged = [
        group
        for group in groups
        if any(name.startswith(("cosine/", "raw_norm_ratio/")) for name in group.first.metrics.names())
    ]
    data = {
        "intro": "Below 0 the gradients of two objectives contradict each other: a step along one undoes the other. "
        "Dominance above 1: the first one's gradient is the longer one. Both are of the raw gradients ∇L, as "
        "in figures 3 and C.4 of the MoKD preprint; balancers of logarithms see ∇log L = ∇L / L, whose cosine "
        "is the same and whose dominance may be the other way round.",
        "groups": logged,
        "charts": [charts[0] for charts in kinds.values()],
        "more": [
            ("Other parameter groups", [chart for charts in kinds.values() for chart in charts[1:]]),
            ("Subspaces of the distillation", subspaces),
        ],
        "absent": "Not logged. A run with several objectives logs it with train.conflict_period=20.",
    }
    return Section("conflict", "Conflict", "Conflict and dominance", "curves", data)


def _metrics(groups: Sequence[RunGroup]) -> list[RunMetrics]:
    return [run.metrics for group in groups for run in group.runs]


def _chart(groups: Sequence[RunGroup], title: str, read: Read, unit: str = "", **axis: Any) -> Chart:
    """A curve per run; seeds that were logged at equal iterations become their mean with a band."""
    curves = []
    for group in groups:
        colour = page_colour(group.colour)
        series = [(x, y) for x, y in (read(run.metrics) for run in group.runs) if len(x)]
        if len(series) > 1 and all(np.array_equal(series[0][0], other) for other, _ in series):
            values = np.array([y for _, y in series])
            label = f"{group.label}, mean of {len(series)} seeds"
            curves.append(Curve(label, colour, series[0][0], values.mean(0), values.min(0), values.max(0)))
        else:
            curves += [
                Curve(group.label, colour, x, y, style=LINE_STYLES[(group.style + number) % len(LINE_STYLES)])
                for number, (x, y) in enumerate(series)
            ]
    return Chart(title, curves, unit, **axis)
