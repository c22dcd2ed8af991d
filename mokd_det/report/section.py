"""What all parts of the page are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mokd_det.evaluation.replicate_statistics import Estimate
from mokd_det.report.markup import Content, Markup, element
from mokd_det.report.run_record import RunGroup

__all__ = [
    "COLOURS",
    "Section",
    "absent",
    "charts_grid",
    "colour_of",
    "estimate_text",
    "legend",
    "metric_titles",
    "more_charts",
    "table",
]

COLOURS = 8
"""How many the style sheet has; further runs are told apart by dashes."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        id: of its anchor.
        short: its name in the navigation.
        title: its heading.
        content: what is below.
    """

    id: str
    short: str
    title: str
    content: Content


def colour_of(group: RunGroup) -> int:
    """Number of the page's colour."""
    return group.colour % COLOURS


def legend(groups: Sequence[RunGroup]) -> Markup | None:
    """Which colour is which run; nothing for a single one."""
    if len(groups) < 2:
        return None
    return element(
        "p",
        (
            element("span", element("i", "", class_=f"swatch c{colour_of(group)}"), group.label, class_="key")
            for group in groups
        ),
        class_="legend",
    )


def absent(sentence: str) -> Markup:
    """Why a part is empty."""
    return element("p", sentence, class_="absent")


def metric_titles(names: Sequence[str]) -> dict[str, str]:
    """What to call results: the metric's name, with the task where two tasks have it."""
    short = [name.rpartition("/")[2] for name in names]
    return {
        name: metric if short.count(metric) == 1 else f"{metric} ({name.rpartition('/')[0]})"
        for name, metric in zip(names, short)
    }


def estimate_text(value: Estimate, form: str = ".1f") -> str:
    """A mean and half of its interval."""
    mean = format(value.mean, form)
    return mean if value.half_width is None else f"{mean} ± {value.half_width:.1f}"


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[bool] | None = None,
    *,
    code: bool = False,
) -> Markup:
    """A table that scrolls sideways where it is wider than the page.

    Args:
        heads: of the columns.
        rows: the first cell of each is its heading.
        numeric: which columns are aligned right.
        code: the rows' headings are keys.
    """
    numeric = numeric or [False] * len(heads)
    head = element(
        "tr",
        (
            element("th", name, scope="col", class_="number" if number else None)
            for name, number in zip(heads, numeric)
        ),
    )
    body = []
    for row in rows:
        first = element("th", element("code", row[0]) if code else row[0], scope="row")
        cells = [
            element("td", cell, class_="number" if number else "words")
            for cell, number in zip(row[1:], numeric[1:])
        ]
        body.append(element("tr", first, cells))
    whole = element("table", element("thead", head), element("tbody", body))
    return element("div", whole, class_="scroll", tabindex=0)


def charts_grid(charts: Sequence[Markup]) -> Markup:
    """Charts in as many columns as there is room for."""
    return element("div", charts, class_="charts")


def more_charts(title: str, charts: Sequence[Markup]) -> Markup | None:
    """Charts behind a line that unfolds them; nothing without any."""
    if not charts:
        return None
    return element("details", element("summary", title), charts_grid(charts))
