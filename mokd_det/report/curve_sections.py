"""What was logged over the iterations: results, losses, weights, conflict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import methodcaller
from typing import Any

import numpy as np

from mokd_det.report.line_chart import Line, line_chart
from mokd_det.report.markup import Content, Markup, element
from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import (
    COLOURS,
    Section,
    absent,
    charts_grid,
    colour_of,
    legend,
    metric_titles,
    more_charts,
)
from mokd_det.visualization.run_metrics import RunMetrics, Series

__all__ = ["conflict_section", "losses_section", "results_section", "weights_section"]

Read = Callable[[RunMetrics], Series]


def results_section(groups: Sequence[RunGroup]) -> Section:
    """The evaluation results over the iterations."""
    names: dict[str, None] = {}
    for group in groups:
        for run in group.runs:
            names.update(dict.fromkeys(run.result_names()))
    charts = []
    titles = metric_titles(list(names))
    for name in names:
        lines = _curves(groups, methodcaller("series", name))
        if any(np.isfinite(line.y).any() for line in lines):
            charts.append(
                line_chart(f"{titles[name]} on the validation data", lines, unit="percent", from_zero=True)
            )
    evaluated = [group for group in groups if group.first.result_names()]
    several = any(len(group.runs) > 1 for group in evaluated)
    note = element("p", "Line: mean of the seeds; band: from the worst to the best.", class_="note")
    return Section(
        "results",
        "Results",
        "Accuracy over time",
        [
            legend(evaluated),
            charts_grid(charts[:3]),
            more_charts("More metrics", charts[3:]),
            note if several else None,
        ]
        if charts
        else absent("Nothing was evaluated during the training (train.eval_period, dataloader.evaluator)."),
    )


def losses_section(groups: Sequence[RunGroup]) -> Section:
    """The objectives' losses, then their terms."""
    runs = [run for group in groups for run in group.runs]
    objectives = list(dict.fromkeys(name for run in runs for name in run.metrics.objectives))
    # The objective that most runs have comes first: the task.
    objectives.sort(key=lambda name: -sum(name in run.metrics.objectives for run in runs))
    totals, terms = [], []
    grouped: list[str | None] = [*objectives]
    for objective in grouped or [None]:
        total = _curves(groups, methodcaller("objective", objective))
        if total:
            title = "All losses" if objective is None else f"Objective “{objective}”"
            totals.append(line_chart(title, total, unit="sum of its losses, logarithmic", logarithmic=True))
        for term in dict.fromkeys(term for run in runs for term in run.metrics.terms(objective)):
            lines = _curves(groups, partial(_term, objective=objective, term=term))
            terms.append(line_chart(f"loss_{term}", lines, from_zero=True))
    return Section(
        "losses",
        "Losses",
        "Losses",
        [
            legend(groups),
            charts_grid(totals),
            more_charts(f"Each of the {len(terms)} terms, summed over the decoder's levels", terms),
        ]
        if totals
        else absent("No losses were logged."),
    )


def weights_section(groups: Sequence[RunGroup]) -> Section:
    """π over the iterations, of the runs with more than one objective."""
    balanced = [group for group in groups if len(group.first.metrics.weights()) > 1]
    names = list(dict.fromkeys(name for group in balanced for name in group.first.metrics.weights()))
    charts = [
        line_chart(
            f"π of “{name}”",
            _curves(balanced, methodcaller("series", f"pi/{name}")),
            limits=(0.0, 1.0),
        )
        for name in names
    ]
    explained = element(
        "p",
        "How much of each step's direction every objective gets; the weights of a step add up to 1.",
        class_="soft",
    )
    return Section(
        "weights",
        "Weights",
        "Weights of the objectives",
        [explained, legend(balanced), charts_grid(charts)]
        if charts
        else absent("No run has more than one objective to weigh."),
    )


def conflict_section(groups: Sequence[RunGroup]) -> Section:
    """Conflict and dominance of the objectives' gradients, and what the method says of its subspaces."""
    conflict = _prefixed_charts(
        groups, "cosine/", "Conflict", "cosine", {"limits": (-1.0, 1.0), "reference": 0.0}
    )
    inner = _prefixed_charts(
        groups, "raw_inner_product/", "Conflict, inner product", "⟨∇L₁, ∇L₂⟩", {"reference": 0.0}
    )
    ratio = {"logarithmic": True, "reference": 1.0}
    dominance = _prefixed_charts(groups, "raw_norm_ratio/", "Dominance", "‖∇L₁‖ / ‖∇L₂‖", ratio)
    of_logarithms = _prefixed_charts(
        groups, "log_norm_ratio/", "Dominance of the logarithms", "‖∇log L₁‖ / ‖∇log L₂‖", ratio
    )
    content: list[Content] = []
    kinds = (inner, conflict, dominance, of_logarithms)
    if any(kinds):
        content += [
            element(
                "p",
                "Below 0 the gradients of two objectives contradict each other: a step along one undoes the other. "
                "Dominance above 1: the first one's gradient is the longer one. Both are of the raw gradients ∇L, as "
                "in figures 3 and C.4 of the MoKD preprint; balancers of logarithms see ∇log L = ∇L / L, whose cosine "
                "is the same and whose dominance may be the other way round.",
                class_="soft",
            ),
            legend([group for group in groups if _logs(group, "cosine/") or _logs(group, "raw_norm_ratio/")]),
            charts_grid([chart for kind in kinds for chart in kind[:1]]),
            more_charts("Other parameter groups", [chart for kind in kinds for chart in kind[1:]]),
        ]
    else:
        content.append(
            absent("Not logged. A run with several objectives logs it with train.conflict_period=20.")
        )
    ranks = _suffixed_charts(groups, "target_effective_rank", "Effective rank of the target")
    negative = _suffixed_charts(groups, "negative_metric", "Negative entries of D")
    content.append(more_charts("Subspaces of the distillation", [*ranks, *negative]))
    return Section("conflict", "Conflict", "Conflict and dominance", content)


def _logs(group: RunGroup, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in group.first.metrics.names())


def _prefixed_charts(
    groups: Sequence[RunGroup], prefix: str, title: str, unit: str, options: dict[str, Any]
) -> list[Markup]:
    names = dict.fromkeys(
        name for group in groups for name in group.first.metrics.names() if name.startswith(prefix)
    )
    # Those of all parameters first.
    ordered = sorted(names, key=lambda name: name.count("/") > 1 and not name.endswith("/all"))
    charts = []
    for name in ordered:
        pair, _, of_group = name.removeprefix(prefix).partition("/")
        where = f", {of_group}" if of_group else ""
        lines = _curves(groups, methodcaller("series", name))
        charts.append(line_chart(f"{title} of {_pair(pair, groups)}{where}", lines, unit=unit, **options))
    return charts


def _pair(name: str, groups: Sequence[RunGroup]) -> str:
    for group in groups:
        known = [*group.first.metrics.objectives, *group.first.metrics.weights()]
        for first in known:
            for second in known:
                if name == f"{first}_{second}":
                    return f"{first} and {second}"
    return name


def _suffixed_charts(groups: Sequence[RunGroup], suffix: str, title: str) -> list[Markup]:
    names = dict.fromkeys(
        name for group in groups for name in group.first.metrics.names() if name.endswith(f"/{suffix}")
    )
    return [
        line_chart(
            f"{title}, {name.removesuffix(f'/{suffix}').removeprefix('distill/')}",
            _curves(groups, methodcaller("series", name)),
            from_zero=True,
        )
        for name in names
    ]


def _term(metrics: RunMetrics, *, objective: str | None, term: str) -> Series:
    """The term's losses of an objective, summed; nothing where the run has none."""
    return metrics.series(*metrics.terms(objective).get(term, [""]))


def _curves(groups: Sequence[RunGroup], read: Read) -> list[Line]:
    """A line per run; seeds that were logged at equal iterations become their mean with a band."""
    lines = []
    for group in groups:
        series = [read(run.metrics) for run in group.runs]
        series = [(x, y) for x, y in series if len(x)]
        if not series:
            continue
        colour = colour_of(group)
        x = series[0][0]
        if len(series) > 1 and all(np.array_equal(x, other) for other, _ in series):
            values = np.array([y for _, y in series])
            label = f"{group.label}, mean of {len(series)} seeds"
            lines.append(Line(label, colour, x, values.mean(0), values.min(0), values.max(0)))
        else:
            lines += [
                Line(group.label, colour, x, y, style=number // COLOURS)
                for number, (x, y) in enumerate(series, start=group.colour - colour)
            ]
    return lines
