"""Entries of a list in a JSON file as checked columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mokd_det.data.findings import Findings, Message, Severity

__all__ = ["CheckedRows", "is_positive", "shorten"]


def shorten(value: Any, limit: int = 300) -> str:
    """The value's text, cut to ``limit`` characters."""
    text = str(value)
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


class CheckedRows:
    """The entries of one list of the file, and which of them have had no problem so far.

    Every entry is rejected once at most: what follows from its first problem is not reported.
    """

    def __init__(self, rows: list[Any], what: str, path: str, findings: Findings) -> None:
        self.rows = rows
        self.what = what
        self.path = path
        self.findings = findings
        self.good = np.ones(len(rows), dtype=bool)

    def reject(
        self,
        bad: np.ndarray | Sequence[bool],
        kind: str,
        message: Message,
        *,
        severity: Severity = "error",
        hint: str = "",
    ) -> None:
        """Tell of those of the entries ``bad`` (N,) that had no problem before, and leave them out from now on."""
        found = np.flatnonzero(np.asarray(bad, dtype=bool) & self.good)
        self.findings.add(kind, found, lambda i: f"{self.path}: {message(i)}", severity=severity, hint=hint)
        self.good[found] = False

    def warn(self, suspicious: np.ndarray, kind: str, message: Message) -> None:
        """Tell of those of the entries ``suspicious`` (N,) that had no problem before; they stay."""
        found = np.flatnonzero(suspicious & self.good)
        self.findings.add(kind, found, lambda i: f"{self.path}: {message(i)}", severity="warning")

    def label(self, index: int) -> str:
        row = self.rows[index]
        if isinstance(row, Mapping) and type(row.get("id")) is int:
            return f"{self.what} id {row['id']}"
        return f"{self.what} number {index} of the list"

    def values(self, key: str) -> list[Any]:
        """The column; None for entries without the key, which are rejected."""
        try:
            return [row[key] for row in self.rows]
        except (KeyError, TypeError):
            present = [isinstance(row, Mapping) and key in row for row in self.rows]
            self.reject(
                [not isinstance(row, Mapping) for row in self.rows],
                "wrong-type",
                lambda i: f"{self.label(i)} is {shorten(repr(self.rows[i]), 60)}; must be an object",
            )
            self.reject(~np.array(present), "missing-key", lambda i: f"{self.label(i)} has no {key!r}")
            return [row[key] if there else None for row, there in zip(self.rows, present, strict=True)]

    def ints(self, key: str) -> np.ndarray:
        """The column, (N,) int64; 0 for entries that are rejected."""
        values = self.values(key)
        if not values:
            return np.zeros(0, dtype=np.int64)
        try:
            array = np.asarray(values)
        except ValueError:
            array = np.zeros(0)
        # Checked by the resulting dtype: asking for integers would turn the string "12" into a number without a word.
        if array.ndim == 1 and array.dtype.kind == "i":
            return array.astype(np.int64)
        fits = [type(value) is int and abs(value) < 2**63 for value in values]
        return np.array(self._fitting(key, values, fits, "an integer", 0), dtype=np.int64)

    def unique_ints(self, key: str) -> np.ndarray:
        """:meth:`ints`; of several entries with one value the first is kept."""
        values = self.ints(key)
        usable = np.flatnonzero(self.good)
        repeated = np.ones(len(values), dtype=bool)
        repeated[usable[np.unique(values[usable], return_index=True)[1]]] = False
        self.reject(
            repeated,
            f"repeated-{key}",
            lambda i: f"the {self.what} {key} {values[i]} occurs twice; ids must be unique",
        )
        return values

    def strings(self, key: str) -> list[str]:
        """The column; "" for entries that are rejected."""
        values = self.values(key)
        fits = [isinstance(value, str) and value != "" for value in values]
        return self._fitting(key, values, fits, "a non-empty string", "")

    def boxes(self, key: str) -> np.ndarray:
        """The column, (N, 4) float64, finite; zeros for entries that are rejected."""
        values = self.values(key)
        if not values:
            return np.zeros((0, 4))
        try:
            boxes = np.asarray(values)
        except ValueError:
            boxes = np.zeros(0)
        # By the resulting dtype, see ints
        if boxes.shape != (len(values), 4) or boxes.dtype.kind not in "iuf":
            fits = [_is_box(value) for value in values]
            self.reject(
                ~np.array(fits),
                "malformed-box",
                lambda i: (
                    f"{self.label(i)} has {key} {shorten(repr(values[i]))}; must be four numbers [x, y, w, h]"
                ),
            )
            boxes = np.array([value if fit else (0, 0, 0, 0) for value, fit in zip(values, fits)])
        boxes = boxes.astype(np.float64)
        finite = np.isfinite(boxes).all(axis=1)
        self.reject(
            ~finite,
            "box-not-finite",
            lambda i: f"{self.label(i)} has {key} {values[i]}; its numbers must be finite",
        )
        boxes[~finite] = 0.0
        return boxes

    def flags(self, key: str) -> np.ndarray:
        """An optional column of 0 and 1, (N,) bool."""
        values = self._optional(key, 0)
        return np.array(
            self._fitting(key, values, [value in (0, 1) for value in values], "0 or 1", 0), dtype=bool
        )

    def numbers(self, key: str) -> np.ndarray:
        """The column, (N,) float64, finite; zeros for entries that are rejected."""
        values = self.values(key)
        fits = [_is_finite(value) for value in values]
        return np.array(self._fitting(key, values, fits, "a finite number", 0.0), dtype=np.float64)

    def areas(self, key: str) -> np.ndarray:
        """An optional column of numbers above 0, (N,) float64; NaN where there is none, and with a warning where there
        is another value, which is what annotation tools write that know no masks."""
        values = self._optional(key, math.nan)
        fits = [is_positive(value) for value in values]
        given = np.array([isinstance(row, Mapping) and key in row for row in self.rows], dtype=bool)
        self.warn(
            given & ~np.array(fits, dtype=bool),
            f"{key}-unusable",
            lambda i: (
                f"{self.label(i)} has {key}={shorten(repr(values[i]))}, which is no finite number above 0; width times "
                "height of its box is taken"
            ),
        )
        return np.array([value if fit else math.nan for value, fit in zip(values, fits)], dtype=np.float64)

    def _optional(self, key: str, default: Any) -> list[Any]:
        return [row.get(key, default) if isinstance(row, Mapping) else default for row in self.rows]

    def _fitting(self, key: str, values: list[Any], fits: list[bool], wanted: str, default: Any) -> list[Any]:
        """The values; ``default`` for those that do not fit, whose entries are rejected."""
        self.reject(
            ~np.array(fits, dtype=bool),
            "wrong-type",
            lambda i: f"{self.label(i)} has {key}={shorten(repr(values[i]))}; must be {wanted}",
        )
        return [value if fit else default for value, fit in zip(values, fits)]


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return _is_finite(value) and value > 0


def _is_finite(value: Any) -> bool:
    """Whether it is a number and a finite float64: integers may be too large for one."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4:
        return False
    return all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in value)
