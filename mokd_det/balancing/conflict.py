"""How the objectives' gradients relate, from their Gram matrix: conflict and dominance (Figs. 3 and C.4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["gram_scalars"]


def gram_scalars(gram: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Per pair of objectives a, b: ⟨g_a, g_b⟩, their cosine and ‖g_a‖ / ‖g_b‖.

    Args:
        gram: (K, K) inner products.
        names: the K objectives.

    Returns:
        ``inner_product/a_b``, ``cosine/a_b`` (0 if either vanishes) and ``norm_ratio/a_b``, as scalars on the
        device of ``gram``.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    tiny = torch.finfo(gram.dtype).tiny
    scalars: dict[str, Tensor] = {}
    for first, second in combinations(range(len(names)), 2):
        pair = f"{names[first]}_{names[second]}"
        scalars[f"inner_product/{pair}"] = gram[first, second]
        scalars[f"cosine/{pair}"] = gram[first, second] / (norms[first] * norms[second]).clamp(min=tiny)
        scalars[f"norm_ratio/{pair}"] = norms[first] / norms[second].clamp(min=tiny)
    return scalars
