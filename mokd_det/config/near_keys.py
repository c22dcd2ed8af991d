"""The "did you mean" of messages about configuration keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(key: str, siblings: Iterable[str], everywhere: Iterable[str] = ()) -> str:
    """A hint for an unknown dotted key: "did you mean '…'?" with the nearest of the ``siblings`` at the same place,
    else of the keys ``everywhere`` one with the same last part or a similar full spelling, else the siblings."""
    siblings = sorted(siblings)
    everywhere = sorted(everywhere)
    last = key.rsplit(".", 1)[-1]
    near = (
        difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
        or [other for other in everywhere if other.rsplit(".", 1)[-1] == last]
        or difflib.get_close_matches(key, everywhere, n=1, cutoff=0.75)
    )
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known here: {', '.join(siblings) or 'nothing'}"
