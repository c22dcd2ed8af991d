"""What fits and what does not between a checkpoint and a model, in one place and one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor

__all__ = ["KeyReport", "compare_keys"]

_KEYS_SHOWN = 20
_KEYS_IN_SUMMARY = 3


@dataclass(frozen=True)
class KeyReport:
    """The differences between a checkpoint's tensors and a model's: keys that the checkpoint lacks, those that the
    model lacks, those of another shape (in the checkpoint, in the model), and how many fit."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    matched: int = 0

    @property
    def is_exact(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    def without(self, missing: Sequence[str] = (), unexpected: Sequence[str] = ()) -> KeyReport:
        """The report less the keys that ``fnmatch`` patterns declare harmless; shapes must always agree."""
        return replace(
            self,
            missing=tuple(key for key in self.missing if not _matches(key, missing)),
            unexpected=tuple(key for key in self.unexpected if not _matches(key, unexpected)),
        )

    def summary(self) -> str:
        """One line: counts, and the first keys of each kind."""
        parts = [f"{self.matched} keys fit"]
        for label, keys in self._kinds("{} {} instead of {}"):
            more = ", …" if len(keys) > _KEYS_IN_SUMMARY else ""
            parts.append(f"{len(keys)} {label} ({', '.join(keys[:_KEYS_IN_SUMMARY])}{more})")
        return "; ".join(parts)

    def __str__(self) -> str:
        """Several lines: every kind of difference with its keys, long lists cut."""
        lines = [f"  {self.matched} keys fit"]
        for label, keys in self._kinds("{}: {} in the file, {} in the model"):
            lines.append(f"  {len(keys)} {label}:")
            lines += [f"    {key}" for key in keys[:_KEYS_SHOWN]]
            if len(keys) > _KEYS_SHOWN:
                lines.append(f"    … and {len(keys) - _KEYS_SHOWN} more")
        return "\n".join(lines)

    def _kinds(self, shape_text: str) -> list[tuple[str, Sequence[str]]]:
        """The kinds of differences that there are, with their keys; shapes are in the words of ``shape_text``."""
        shapes = [shape_text.format(key, list(found), list(wanted)) for key, found, wanted in self.mismatched]
        kinds: list[tuple[str, Sequence[str]]] = [
            ("of another shape", shapes),
            ("missing from the file", self.missing),
            ("unknown to the model", self.unexpected),
        ]
        return [(label, keys) for label, keys in kinds if keys]


def compare_keys(checkpoint: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> KeyReport:
    """Compare two state dicts by key and shape."""
    common = [key for key in checkpoint if key in model]
    mismatched = tuple(
        (key, tuple(checkpoint[key].shape), tuple(model[key].shape))
        for key in common
        if checkpoint[key].shape != model[key].shape
    )
    return KeyReport(
        missing=tuple(key for key in model if key not in checkpoint),
        unexpected=tuple(key for key in checkpoint if key not in model),
        mismatched=mismatched,
        matched=len(common) - len(mismatched),
    )


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
