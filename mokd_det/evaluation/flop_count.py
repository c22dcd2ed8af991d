"""Multiply-adds of one forward pass, counted by fvcore, and what it leaves out."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.export import TracingAdapter
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from torch import nn

__all__ = ["FlopCount", "count_flops"]


@dataclass(frozen=True)
class FlopCount:
    """Multiply-adds of one forward pass (one of them counts once, as in fvcore and in most papers' tables).

    Attributes:
        by_part: of each direct child of the model that is called as a module.
        not_counted: operators without a count, and how often each runs: element-wise ones and reductions mostly.
        not_called: modules with parameters that are not called in the pass: unused, or read by their parent directly.
    """

    total: int
    by_operator: dict[str, int]
    by_part: dict[str, int]
    not_counted: dict[str, int]
    not_called: list[str]


def count_flops(model: nn.Module, inputs: tuple[Any, ...]) -> FlopCount:
    """Count the multiply-adds of ``model(*inputs)``.

    Matrix products, convolutions, attention, normalisations (4 or 5 per element), interpolation and bilinear sampling
    are counted; what is not is listed. The inputs may have any nested structure that holds tensors.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # A trace at this size is what is wanted: its sizes may be constants.
        warnings.simplefilter("ignore")
        fast_attention = torch.backends.mha.get_fastpath_enabled()
        # It would merge a whole attention into one operator.
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            adapter = TracingAdapter(model, inputs, allow_non_tensor=True)
            analysis = FlopCountAnalysis(adapter, adapter.flattened_inputs)
            analysis.set_op_handle(**_HANDLES)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            # Where the tracer sees constants, it says so for each of them.
            logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
            by_module = analysis.by_module()
            operators, missing = analysis.by_operator(), analysis.unsupported_ops()
            idle = analysis.uncalled_modules()
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)
    children = dict(model.named_children())
    return FlopCount(
        total=int(sum(operators.values())),
        by_operator=_largest_first(operators),
        by_part=_largest_first({name: by_module.get(f"model.{name}", 0) for name in children}),
        not_counted=_largest_first(missing),
        not_called=_outermost(
            name.removeprefix("model.")
            for name in sorted(idle)
            if name.startswith("model.") and any(True for _ in adapter.get_submodule(name).parameters())
        ),
    )


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Two matrix products: queries with keys, and their softmax with values."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_HANDLES: Mapping[str, Any] = {"aten::scaled_dot_product_attention": _attention}
"""For operators that fvcore does not know."""


def _largest_first(counts: Mapping[str, float]) -> dict[str, int]:
    return {name: int(count) for name, count in sorted(counts.items(), key=lambda item: -item[1]) if count}


def _outermost(names: Any) -> list[str]:
    """Sorted names, without those inside another of them."""
    kept: list[str] = []
    for name in names:
        if not any(name.startswith(f"{outer}.") for outer in kept):
            kept.append(name)
    return kept
