"""What all parts of the page are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Section", "absent_section", "metric_titles"]


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, name in the navigation and heading; the template in ``templates``, without
    ".html", and what it shows."""

    id: str
    short: str
    title: str
    template: str
    data: Mapping[str, Any]


def absent_section(id: str, title: str, sentence: str) -> Section:
    """A part that says why it is empty."""
    return Section(id, id.capitalize(), title, "absent", {"sentence": sentence})


def metric_titles(names: Sequence[str]) -> dict[str, str]:
    """What to call results: the metric's name, with the task where two tasks have it."""
    short = [name.rpartition("/")[2] for name in names]
    return {
        name: metric if short.count(metric) == 1 else f"{metric} ({name.rpartition('/')[0]})"
        for name, metric in zip(names, short)
    }
