"""Bars as plain HTML: they wrap on a phone and spread on a wide screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mokd_det.report.markup import Markup, element

__all__ = ["Bar", "BarGroup", "bar_groups", "stacked_bars"]


@dataclass(frozen=True)
class Bar:
    """One value.

    Attributes:
        label: whose it is.
        colour: number of the page's colour.
        value: from 0 up; None: there is none.
        shown: the value as text.
    """

    label: str
    colour: int
    value: float | None
    shown: str


@dataclass(frozen=True)
class BarGroup:
    """Values that are compared.

    Attributes:
        title: what they are.
        hint: more words about it.
        bars: of the runs.
    """

    title: str
    bars: Sequence[Bar]
    hint: str = ""


def bar_groups(groups: Sequence[BarGroup], *, dense: bool = False) -> Markup:
    """Groups of bars in as many columns as there is room for, all on one scale.

    Args:
        groups: one or more.
        dense: more columns.
    """
    highest = max([bar.value or 0.0 for group in groups for bar in group.bars], default=0.0) or 1.0
    return element(
        "div",
        (
            element(
                "div",
                element(
                    "h4",
                    group.title,
                    element("span", f" {group.hint}", class_="unit") if group.hint else None,
                ),
                (_bar(bar, highest) for bar in group.bars),
                class_="bargroup",
            )
            for group in groups
        ),
        class_="bars dense" if dense else "bars",
    )


def _bar(bar: Bar, highest: float) -> Markup:
    width = 0.0 if bar.value is None else max(0.0, min(100.0, 100 * bar.value / highest))
    return element(
        "div",
        element(
            "span",
            element("span", "", class_=f"bar c{bar.colour}", style=f"width:{width:.2f}%"),
            class_="track",
        ),
        element("span", bar.shown, class_="value"),
        class_="barline",
        title=f"{bar.label}: {bar.shown}",
    )


def stacked_bars(
    rows: Sequence[tuple[str, Sequence[float], str]], parts: Sequence[str], *, unit: str
) -> Markup:
    """One bar per row, divided into parts.

    Args:
        rows: (name, value of each part, text behind the bar).
        parts: their names, for the legend.
        unit: of the values.
    """
    highest = max([sum(values) for _, values, _ in rows], default=0.0) or 1.0
    legend = element(
        "p",
        (
            element("span", element("i", "", class_=f"swatch p{i}"), name, class_="key")
            for i, name in enumerate(parts)
        ),
        class_="legend",
    )
    lines = []
    for name, values, shown in rows:
        pieces = [
            element(
                "span",
                "",
                class_=f"piece p{i}",
                style=f"width:{100 * value / highest:.2f}%",
                title=f"{name}, {part}: {value:.4g} {unit}",
            )
            for i, (part, value) in enumerate(zip(parts, values))
            if value > 0
        ]
        lines.append(
            element(
                "div",
                element("span", name, class_="rowname"),
                element("span", pieces, class_="track"),
                element("span", shown, class_="value wide"),
                class_="stackline",
            )
        )
    return element("div", legend, lines, class_="stacked")
