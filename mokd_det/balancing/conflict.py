"""How the objectives' gradients relate, from their Gram matrix: conflict and dominance (Figs. 3 and C.4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

__all__ = ["gram_scalars"]


def gram_scalars(gram: Tensor, names: Sequence[str], losses: Tensor | None = None) -> dict[str, Tensor]:
    """Per pair of objectives a, b: the preprint's conflict ⟨∇L_a, ∇L_b⟩ and dominance ‖∇L_a‖ / ‖∇L_b‖, and the cosine.

    The preprint defines both of the raw gradients; a balancer of logarithms works with ∇log L_i = ∇L_i / L_i, whose
    inner products and norms are others, and whose cosine is the same. Which gradient dominates may turn round.

    Args:
        gram: (K, K) inner products of the ∇L_i.
        names: the K objectives.
        losses: (K,) positive; None: nothing of the logarithms.

    Returns:
        ``cosine/a_b`` (0 if either vanishes), ``raw_inner_product/a_b``, ``raw_norm_ratio/a_b``, and with ``losses``
        ``log_inner_product/a_b`` and ``log_norm_ratio/a_b``, as scalars on the device of ``gram``.
    """
    scalars: dict[str, Tensor] = {}
    tiny = torch.finfo(gram.dtype).tiny
    kinds = {"raw": gram} if losses is None else {"raw": gram, "log": gram / torch.outer(losses, losses)}
    for first, second in combinations(range(len(names)), 2):
        pair = f"{names[first]}_{names[second]}"
        for kind, matrix in kinds.items():
            norms = matrix.diagonal().clamp(min=0).sqrt()
            product = norms[first] * norms[second]
            scalars.setdefault(f"cosine/{pair}", matrix[first, second] / product.clamp(min=tiny))
            scalars[f"{kind}_inner_product/{pair}"] = matrix[first, second]
            scalars[f"{kind}_norm_ratio/{pair}"] = norms[first] / norms[second].clamp(min=tiny)
    return scalars
