"""A draw of the training data: some of its records, chosen by a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mokd_det.errors import ConfigError

__all__ = ["drawn"]

# Keeps this choice apart from what else is drawn under the same number.
_DRAW_STREAM = 14


def drawn(length: int, draw: Mapping[str, int] | None) -> list[int]:
    """Indices of the drawn records, ascending.

    Draws of one seed are nested: the smaller one is part of the larger one.

    Args:
        length: how many records there are.
        draw: ``count`` (how many of them, without repetition) and ``seed`` (non-negative, 0 by default); None: all.

    Raises:
        ConfigError: other keys, a count outside 1…length, or a negative seed.
    """
    if draw is None:
        return list(range(length))
    if not {"count"} <= set(draw) <= {"count", "seed"}:
        raise ConfigError(
            f"draw={dict(draw)}: must have count and may have seed, e.g. draw={{count: 100, seed: 0}}"
        )
    count, seed = draw["count"], draw.get("seed", 0)
    if not 1 <= count <= length:
        raise ConfigError(f"draw.count={count}: must be 1 to {length}, the number of training images")
    if seed < 0:
        raise ConfigError(f"draw.seed={seed}: must be 0 or more")
    return sorted(np.random.default_rng([_DRAW_STREAM, seed]).permutation(length)[:count].tolist())
