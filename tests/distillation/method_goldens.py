"""Inputs and numbers of the published methods' losses, in float64; adapters are filled by their tensors' names."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mokd_det.distillation import Method
from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.taps import TapValue
from mokd_det.layers.tap_point import FeatureMap, TapSpec
from tests.classification.cifar.golden import draw, weight

FOLDER = Path(__file__).parents[1] / "data" / "methods"
PAIRS = (
    "resnet56_resnet20",
    "wrn402_wrn401",
    "resnet32x4_resnet8x4",
    "resnet50_mobilenetv2",
    "resnet32x4_shufflev1",
    "resnet32x4_shufflev2",
)


@cache
def stored() -> dict[str, np.ndarray]:
    """``<case>/value``, ``<case>/grad_norm`` and parts."""
    with np.load(FOLDER / "losses.npz") as file:
        return dict(file)


@cache
def cases() -> dict[str, dict[str, Any]]:
    """Case → its inputs, adapters and number of adapter parameters."""
    return {case["case"]: case for case in json.loads((FOLDER / "losses.json").read_text())}


def number(name: str) -> float:
    return float(stored()[name])


def numbers(name: str) -> list[float]:
    return stored()[name].tolist()


def normal(name: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return torch.from_numpy((shift + scale * draw(name, shape)).astype(np.float32)).double()


def integers(name: str, shape: tuple[int, ...], high: int) -> Tensor:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(generator.integers(0, high, size=shape).astype(np.int64))


def inputs(case: str) -> dict[str, Tensor]:
    """The case's inputs; those of the student (s…, mid) want gradients."""
    made = {}
    for name, (seed, shape, *rest) in cases()[case]["inputs"].items():
        if seed.endswith(" (integers)"):
            made[name] = integers(seed.removesuffix(" (integers)"), tuple(shape), rest[0])
        elif "->" in seed or not all(isinstance(x, (int, float)) for x in rest if x != "clamped at 0"):
            continue
        else:
            scale, *shift = [x for x in rest if x != "clamped at 0"]
            tensor = normal(seed, tuple(shape), scale, *shift)
            made[name] = tensor.clamp_min(0) if "clamped at 0" in rest else tensor
        if name[0] == "s" or name == "mid":
            made[name].requires_grad_()
    return made


def adapter(case: str, prefix: str | None = None) -> dict[str, Tensor]:
    """The case's adapters by their published names."""
    modules = cases()[case]["modules"]
    prefix = modules["prefix"] if prefix is None else prefix
    return {
        key: torch.from_numpy(np.asarray(weight(prefix + key, tuple(shape))))
        for key, shape in modules["state"].items()
    }


def load(method: Method, state: Mapping[str, Tensor]) -> Method:
    """The method in float64 with these tensors; buffers that the goldens know nothing of stay as they are."""
    missing, unexpected = method.load_state_dict(state, strict=False)
    assert not unexpected and not {key for key, _ in method.named_parameters()} & set(missing)
    return method.double()


def vectors(channels: int) -> TapSpec:
    return TapSpec("vectors", (channels,))


def maps(*tensors: Tensor, image: int = 32) -> list[FeatureMap]:
    return [FeatureMap(t, None, image // t.shape[-1]) for t in tensors]


def spec(value: TapValue) -> TapSpec:
    """The description of a tap's value."""
    if isinstance(value, list):
        return TapSpec("maps", tuple(m.tensor.shape[1] for m in value), tuple(m.stride for m in value))
    if value.ndim == 2:
        return vectors(value.shape[1])
    levels = value.shape[0] if value.ndim == 4 else 1
    return TapSpec("tokens", (value.shape[-1],), num_tokens=value.shape[-2], num_levels=levels)


def set_up(method: Method, student: Mapping[str, TapValue], teacher: Mapping[str, TapValue]) -> Method:
    method.setup({n: spec(v) for n, v in student.items()}, {n: spec(v) for n, v in teacher.items()})
    return method


def loss(
    method: Method,
    student: Mapping[str, TapValue],
    teacher: Mapping[str, TapValue],
    weights: Mapping[str, float],
    **context: Any,
) -> Tensor:
    """The weighted sum of the method's terms, which must be exactly those."""
    terms = method(student, teacher, MethodContext(**context))
    assert set(terms) == set(weights)
    return torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()


def gradient_norms(value: Tensor, *tensors: Tensor) -> list[float]:
    return [float(torch.linalg.vector_norm(g)) for g in torch.autograd.grad(value, tensors)]
