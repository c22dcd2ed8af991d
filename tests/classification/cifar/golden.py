"""The published networks' names and numbers: weights made from their keys, statistics of every tap."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mokd_det.classification import cifar
from mokd_det.distillation.taps import TapRecorder

FOLDER = Path(__file__).parents[2] / "data" / "cifar"
NETWORKS = {
    # the name in the published releases → ours
    "resnet20": cifar.resnet20,
    "resnet56": cifar.resnet56,
    "resnet8x4": cifar.resnet8x4,
    "resnet32x4": cifar.resnet32x4,
    "wrn_40_1": cifar.wrn_40_1,
    "wrn_40_2": cifar.wrn_40_2,
    "ResNet50": cifar.resnet50,
    "MobileNetV2": cifar.mobilenet_v2,
    "ShuffleV1": cifar.shufflenet_v1,
    "ShuffleV2": cifar.shufflenet_v2,
}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float64 numbers that depend on the name and the shape alone."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Value of one entry of a state_dict, by its name: not normalising, so that every layer shows in the logits."""
    noise, leaf = draw(key, shape), key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        values = 1 + np.abs(0.1 * noise)
    elif leaf == "running_mean":
        values = 0.1 * noise
    elif len(shape) > 1:
        values = noise * (2 / np.prod(shape[1:])) ** 0.5
    else:
        values = 0.02 * noise if leaf == "bias" else 1 + 0.1 * noise
    return values.astype(np.float32)


def fill(model: nn.Module, prefix: str = "") -> nn.Module:
    """Give every tensor of the model the value of its name."""
    state = {
        key: torch.from_numpy(np.asarray(weight(prefix + key, tuple(value.shape))))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


@cache
def published_keys() -> dict[str, Any]:
    """Name → {"params": their number, "shapes": name of the tensor → its shape, in order}."""
    return json.loads((FOLDER / "keys.json").read_text())


@cache
def goldens() -> dict[str, np.ndarray]:
    """``<network>/<tap>/{shape,stats,sample}``, ``<network>/logits`` and ``input``."""
    with np.load(FOLDER / "models.npz") as file:
        return dict(file)


def run(network: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and every tap by the goldens' names f0 …, p1 …, pooled."""
    with torch.no_grad(), TapRecorder(network, {name: name for name in network.taps}) as recorder:
        logits = network(images)
    values = recorder.values
    taps = {f"f{i}": level.tensor for i, level in enumerate(values["maps"])}
    taps |= {f"p{i}": level.tensor for i, level in enumerate(values.get("pre", ()), 1)}
    assert torch.equal(values["logits"], logits)
    return logits, {**taps, "pooled": values["pooled"]}


def statistics(name: str, value: np.ndarray) -> np.ndarray:
    """Mean, standard deviation, minimum, maximum, mean magnitude and a projection that any permutation changes."""
    flat = value.reshape(-1)
    projection = (flat * draw(f"proj/{name}", flat.shape)).sum() / flat.size**0.5
    return np.array([flat.mean(), flat.std(), flat.min(), flat.max(), np.abs(flat).mean(), projection])


def sample(value: np.ndarray) -> np.ndarray:
    """64 evenly spaced numbers."""
    return value.reshape(-1)[np.floor(np.linspace(0, value.size - 1, 64)).astype(int)]
