"""The CIFAR networks equal the published ones: names, counts, every tap, logits, first weights."""

from __future__ import annotations

from math import prod, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from mokd_det.classification.cifar import CifarNetwork, CifarResNet, WideResNet
from mokd_det.distillation.taps import TapRecorder, tap_specs
from mokd_det.errors import ConfigError
from tests.classification.cifar.golden import (
    NETWORKS,
    fill,
    goldens,
    published_keys,
    run,
    sample,
    statistics,
)

EACH = pytest.mark.parametrize("name", NETWORKS)
WITH_NORMS = [name for name in NETWORKS if name not in ("MobileNetV2", "ShuffleV2")]


def largest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


@EACH
def test_names_order_shapes_and_count(name: str) -> None:
    network, published = NETWORKS[name](), published_keys()[name]
    found = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    assert found == [[key, shape] for key, shape in published["shapes"].items()]
    assert sum(p.numel() for p in network.parameters()) == published["params"]


@EACH
def test_every_tap_and_the_logits(name: str) -> None:
    network = fill(NETWORKS[name]()).double().eval()
    logits, taps = run(network, torch.from_numpy(goldens()["input"]).double())
    stored = {key.split("/")[1] for key in goldens() if key.startswith(f"{name}/")}
    assert set(taps) == stored - {"logits"}
    for tap, tensor in taps.items():
        key, value = f"{name}/{tap}", tensor.numpy()
        assert list(value.shape) == goldens()[f"{key}/shape"].tolist()
        # relative to the spread: the weights do not normalise, so deep maps have large values
        spread = goldens()[f"{key}/stats"][1]
        assert largest(statistics(key, value) - goldens()[f"{key}/stats"]) <= 1e-12 * spread
        assert largest(sample(value) - goldens()[f"{key}/sample"]) <= 1e-12 * spread
    expected = goldens()[f"{name}/logits"]
    assert largest(logits.numpy() - expected) <= 1e-13 * largest(expected)


@pytest.mark.parametrize("name", ["wrn_40_1", "resnet20", "ShuffleV1", "ShuffleV2", "MobileNetV2"])
def test_float32(name: str) -> None:
    network = fill(NETWORKS[name]()).eval()
    logits, _ = run(network, torch.from_numpy(goldens()["input"]))
    expected = goldens()[f"{name}/logits"]
    assert largest(logits.numpy() - expected) <= 4e-6 * largest(expected)


@EACH
def test_the_description_is_what_comes(name: str) -> None:
    network = NETWORKS[name](num_classes=7).eval()
    specs = tap_specs(network, {tap: tap for tap in network.taps})
    assert specs == {name: tap.spec for name, tap in network.taps.items()}
    with torch.no_grad(), TapRecorder(network, {tap: tap for tap in specs}) as recorder:
        network(torch.randn(2, 3, 32, 32))
    for tap, value in recorder.values.items():
        if specs[tap].kind == "vectors":
            assert value.shape == (2, *specs[tap].channels)
        else:
            assert [level.tensor.shape for level in value] == [
                (2, channels, 32 // stride, 32 // stride)
                for channels, stride in zip(specs[tap].channels, specs[tap].strides, strict=True)
            ]
            assert [level.stride for level in value] == list(specs[tap].strides)
    assert specs["logits"].channels == (7,) and network.get_classifier().out_features == 7


def test_a_tap_that_nobody_reads_costs_nothing() -> None:
    network = NETWORKS["ShuffleV2"]().eval()
    offered: list[str] = []
    for tap in ("maps", "pre"):
        network.taps[tap].forward = lambda value, tap=tap: offered.append(tap)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        network(images)
        assert offered == []
        network.taps["pre"].register_forward_hook(lambda *_: None)
        network(images)
    assert offered == ["pre"]


@pytest.mark.parametrize("name", WITH_NORMS)
def test_the_norms_feed_the_maps_before_the_relu(name: str) -> None:
    network = NETWORKS[name]().eval()
    norms, spec = network.pre_activation_norms(), network.taps["pre"].spec
    assert all(type(norm) is nn.BatchNorm2d for norm in norms)
    assert [norm.num_features for norm in norms] == list(spec.channels) or name == "ShuffleV1"
    images = torch.randn(2, 3, 32, 32)
    _, before = run(network, images)
    for number, norm in enumerate(norms, 1):
        with torch.no_grad():
            norm.bias += 1.0
        _, after = run(network, images)
        change = (after[f"p{number}"] - before[f"p{number}"])[:, : norm.num_features]
        # a residual sum passes the shift on unchanged
        assert torch.allclose(change, torch.ones_like(change), atol=1e-3), (name, number)
        for earlier in range(1, number):
            assert torch.equal(after[f"p{earlier}"], before[f"p{earlier}"])
        before = after


def test_networks_without_such_norms_say_so() -> None:
    for name in set(NETWORKS) - set(WITH_NORMS):
        with pytest.raises(ConfigError, match=r"has no BatchNorm of all channels"):
            NETWORKS[name]().pre_activation_norms()


@EACH
def test_first_weights(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    head = network.get_classifier()
    shuffle = name.startswith("Shuffle")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5 and module.momentum == 0.1
            assert bool((module.weight == 1).all()) and bool((module.bias == 0).all())
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_in = prod(module.weight.shape[1:])
            # torch's default is uniform with the variance 1 / (3 · fan_in)
            std = (
                1 / sqrt(3 * fan_in)
                if shuffle
                else sqrt(2 / (prod(module.kernel_size) * module.out_channels))
            )
            slack = 6 / sqrt(2 * module.weight.numel())
            assert float(module.weight.detach().std()) == pytest.approx(std, rel=slack)
    if name == "MobileNetV2":
        assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    else:
        assert float(head.weight.detach().abs().max()) <= 1 / sqrt(head.in_features)
    assert bool((head.bias == 0).all()) is (name in ("MobileNetV2", "wrn_40_1", "wrn_40_2"))


@pytest.mark.parametrize("name", ["wrn_40_1", "ShuffleV2"])
def test_training_reaches_every_parameter(name: str) -> None:
    network: CifarNetwork = NETWORKS[name](num_classes=10)
    nn.functional.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_other_sizes() -> None:
    assert CifarResNet(8, (4, 4, 8, 16), 5)(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    assert WideResNet(10, 1, 5)(torch.randn(2, 3, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CifarResNet(21), r"depth 6n \+ 2 and four widths, not depth 21"),
        (lambda: CifarResNet(20, (16, 32, 64)), r"widths \(16, 32, 64\)"),
        (lambda: WideResNet(41, 2), r"depth 6n \+ 4 .* not depth 41"),
        (lambda: CifarResNet(8, num_classes=0), r"num_classes is 0"),
    ],
)
def test_sizes_that_do_not_exist(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
