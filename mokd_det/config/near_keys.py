"""The "did you mean" of messages about configuration keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["did_you_mean"]


def did_you_mean(key: str, siblings: Iterable[str], everywhere: Iterable[str] = ()) -> str:
    """A hint for an unknown dotted key.

    Args:
        key: full key that does not exist.
        siblings: full keys at the same place.
        everywhere: all full keys of the configuration.

    Returns:
        "did you mean '…'?" with the nearest sibling, else a key elsewhere with the same last part or a
        similar full spelling, else the list of siblings.
    """
    siblings = sorted(siblings)
    everywhere = sorted(everywhere)
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.75)
    if not near:
        last = key.rsplit(".", 1)[-1]
        near = [other for other in everywhere if other.rsplit(".", 1)[-1] == last][:1]
    if not near:
        near = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.75)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known here: {', '.join(siblings) or 'nothing'}"
