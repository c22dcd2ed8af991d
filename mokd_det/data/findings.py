"""What checks find: raised at once where data is about to be used, collected where data is being examined."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mokd_det.errors import DatasetError

__all__ = ["CollectFindings", "Findings", "Message", "Problem", "RaiseFirst", "Severity"]

logger = logging.getLogger(__name__)

Severity = Literal["error", "warning"]
"""Of an error training must not start; a warning is merely suspicious."""

Message = Callable[[int], str]
"""A sentence about an entry by its index, with file and id; only called for entries that are shown."""


@dataclass(frozen=True)
class RaiseFirst:
    """The first error ends it; warnings go to the log.

    Attributes:
        warn: False where another reading of the same file has warned already.
    """

    warn: bool = True

    def add(
        self,
        kind: str,
        rows: Sequence[int] | np.ndarray,
        message: Message,
        *,
        severity: Severity = "error",
        hint: str = "",
    ) -> None:
        """Report entries with one kind of problem, if there are any.

        Args:
            kind: short name of the kind, e.g. "unknown-category".
            rows: the entries, in order.
            message: about one of them.
            severity: of the problem.
            hint: what to do about it.

        Raises:
            DatasetError: for an error, with the first entry's message and the number of others.
        """
        if not len(rows):
            return
        more = f" (and {len(rows) - 1} more like it)" if len(rows) > 1 else ""
        text = f"{message(int(rows[0]))}{more}{f'; {hint}' if hint else ''}"
        if severity == "error":
            raise DatasetError(text)
        if self.warn:
            logger.warning("%s", text)


@dataclass
class Problem:
    """All entries with one kind of problem: how many there are, and messages about the first of them."""

    kind: str
    severity: Severity
    count: int = 0
    examples: list[str] = field(default_factory=list)


class CollectFindings:
    """Counts everything and keeps the first ``max_examples`` messages of each kind, so that its size is bounded."""

    def __init__(self, max_examples: int = 10) -> None:
        self.max_examples = max_examples
        self._problems: dict[tuple[str, Severity], Problem] = {}

    @property
    def problems(self) -> list[Problem]:
        """Errors first, otherwise in the order of discovery."""
        return sorted(self._problems.values(), key=lambda problem: problem.severity != "error")

    def count(self, severity: Severity) -> int:
        """Entries with a problem of this severity."""
        return sum(problem.count for problem in self._problems.values() if problem.severity == severity)

    def add(
        self,
        kind: str,
        rows: Sequence[int] | np.ndarray,
        message: Message,
        *,
        severity: Severity = "error",
        hint: str = "",
    ) -> None:
        """See :meth:`RaiseFirst.add`; hints are for messages that stand alone, and not kept."""
        if len(rows):
            problem = self._problems.setdefault((kind, severity), Problem(kind, severity))
            room = max(self.max_examples - len(problem.examples), 0)
            problem.examples += [message(int(row)) for row in rows[:room]]
            problem.count += len(rows)


Findings = RaiseFirst | CollectFindings
