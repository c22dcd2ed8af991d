"""Taps by module path, and their static descriptions."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from omegaconf import OmegaConf
from torch import nn

from mokd_det.distillation.taps import TapRecorder, TapSource, find_module, tap_specs
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapPoint, TapSpec


class Pyramid(Backbone):
    """A backbone of Detectron2's interface whose dict of maps is not ordered by stride."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.conv(image)
        return {"p4": features[:, :, ::16, ::16], "p3": features[:, :, ::8, ::8]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"p4": ShapeSpec(channels=4, stride=16), "p3": ShapeSpec(channels=4, stride=8)}


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Pyramid()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.encoder = nn.Identity()
        self.unused = nn.Linear(2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.backbone(image)
        return self.encoder(self.conv(image).flatten(2).mT)


def test_offered_taps_are_found_by_name_or_path(fake_detector, batch) -> None:
    model = fake_detector()
    with TapRecorder(model, {"a": "patch", "b": "taps.neck", "c": "taps.head"}) as recorder:
        model(batch)
    values = recorder.values
    assert [level.stride for level in values["a"]] == [8, 16]
    assert values["a"][0].tensor.shape == (2, 8, 6, 8) and values["a"][0].padding_mask.shape == (2, 6, 8)
    assert values["b"].shape == (2, 5, 8) and values["c"].shape == (3, 2, 5, 8)
    assert values["c"].requires_grad
    assert tap_specs(model, {"a": "patch"}) == {"a": TapSpec("maps", (8, 8), (8, 16))}


def test_no_hook_survives_the_block_even_after_an_error(fake_detector, batch) -> None:
    model = fake_detector()
    with pytest.raises(ZeroDivisionError), TapRecorder(model, {"patch": "patch", "neck": "neck"}):
        raise ZeroDivisionError
    with TapRecorder(model, {"patch": "patch"}):
        model(batch)
    assert all(not module._forward_hooks for module in model.modules())


def test_unknown_path_lists_near_matches(fake_detector) -> None:
    with pytest.raises(IncompatibleModelsError, match=r"FakeDetector has no module 'decoder\.3'.*decoder\.1"):
        TapRecorder(fake_detector(), {"head": "decoder.3"})
    with pytest.raises(
        IncompatibleModelsError, match=r"'pach'.*near matches: patch.*offers the taps patch, neck, head"
    ):
        tap_specs(fake_detector(), {"patch": "pach"})
    with pytest.raises(IncompatibleModelsError, match="no module ''"):
        find_module(fake_detector(), "")


def test_levels_can_be_selected_by_stride(fake_detector, batch) -> None:
    model = fake_detector(strides=(8, 16, 32))
    taps = {"patch": {"path": "patch", "strides": [32, 8]}}
    with TapRecorder(model, taps) as recorder:
        model(batch)
    assert [level.stride for level in recorder.values["patch"]] == [32, 8]
    assert tap_specs(model, taps)["patch"].strides == (32, 8)
    with pytest.raises(
        IncompatibleModelsError, match=r"'taps.patch' has no map of stride 64, only \(8, 16, 32\)"
    ):
        tap_specs(model, {"patch": {"path": "patch", "strides": [64]}})


def test_detectron2_backbones_describe_themselves() -> None:
    model = Foreign()
    taps = {"patch": "backbone"}
    assert tap_specs(model, taps)["patch"] == TapSpec("maps", (4, 4), (8, 16))
    with TapRecorder(model, taps) as recorder:
        model(torch.rand(1, 3, 32, 64))
    maps = recorder.values["patch"]
    assert [(m.stride, tuple(m.tensor.shape), m.padding_mask) for m in maps] == [
        (8, (1, 4, 4, 8), None),
        (16, (1, 4, 2, 4), None),
    ]


def test_described_modules_of_any_model() -> None:
    model = Foreign()
    taps = OmegaConf.create(
        {
            "map": {"path": "conv", "strides": [4], "channels": [6]},
            "tokens": {"path": "encoder", "channels": 6, "num_tokens": 128},
        }
    )
    assert tap_specs(model, taps) == {
        "map": TapSpec("maps", (6,), (4,)),
        "tokens": TapSpec("tokens", (6,), num_tokens=128),
    }
    with TapRecorder(model, taps) as recorder:
        model(torch.rand(1, 3, 32, 64))
    assert recorder.values["map"][0].tensor.shape == (1, 6, 8, 16)
    assert recorder.values["tokens"].shape == (1, 128, 6)


def test_levels_of_a_described_output_can_be_kept() -> None:
    model = Foreign()
    output = {"path": "backbone", "strides": [16, 8], "channels": [4, 4]}  # in the order of the dict
    taps = {"one": {**output, "keep": [8]}, "both": {**output, "keep": [8, 16]}}
    assert tap_specs(model, taps)["one"] == TapSpec("maps", (4,), (8,))
    with TapRecorder(model, taps) as recorder:
        model(torch.rand(1, 3, 32, 64))
    maps = {name: [(m.stride, tuple(m.tensor.shape[2:])) for m in v] for name, v in recorder.values.items()}
    assert maps == {"one": [(8, (4, 8))], "both": [(8, (4, 8)), (16, (2, 4))]}
    with pytest.raises(IncompatibleModelsError, match=r"no map of stride 4, only \(16, 8\)"):
        tap_specs(model, {"tap": {**output, "keep": [4]}})
    with pytest.raises(ConfigError, match="'keep' describes an output only with 'channels'"):
        TapSource.parse({"path": "backbone", "keep": [8]})


def test_undescribed_modules_are_recorded_but_have_no_specification() -> None:
    model = Foreign()
    with TapRecorder(model, {"map": "conv", "tokens": "encoder"}) as recorder:
        model(torch.rand(1, 3, 32, 64))
    assert recorder.values["map"][0].stride == 0
    assert recorder.values["tokens"].shape == (1, 128, 6)
    with pytest.raises(
        IncompatibleModelsError, match=r"'conv' is a Conv2d.*strides=\[...\], channels=\[...\]"
    ):
        tap_specs(model, {"map": "conv"})
    with pytest.raises(IncompatibleModelsError, match="'conv' is a Conv2d"):
        tap_specs(model, {"map": {"path": "conv", "strides": [4]}})


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        (
            {"path": "conv", "strides": [4], "channels": [7]},
            r"7 channels at stride 4, but gave.*\(1, 6, 8, 16\)",
        ),
        ({"path": "conv", "strides": [4, 8], "channels": [6, 6]}, r"2 maps of strides \(4, 8\)"),
        (
            {"path": "encoder", "channels": 6, "num_tokens": 100},
            r"tokens of shape \(B, 100, 6\).*\(1, 128, 6\)",
        ),
        ({"path": "encoder", "channels": 6, "num_levels": 2}, r"tokens of shape \(2, B, 128, 6\)"),
        ({"path": "encoder", "strides": [4], "channels": [6]}, r"maps of shape \(B, C, H, W\)"),
        ({"path": "backbone", "channels": 6}, r"tokens, but gave a mapping: 'p4'"),
        ({"path": "unused", "channels": 6}, r"'unused' did not run"),
    ],
)
def test_outputs_are_checked_against_the_description(tap, message) -> None:
    model = Foreign()
    with pytest.raises(IncompatibleModelsError, match=message):
        with TapRecorder(model, {"tap": tap}) as recorder:
            model(torch.rand(1, 3, 32, 64))
        assert recorder.values


def test_a_module_that_runs_twice_is_ambiguous() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, layer)
    recorder = TapRecorder(model, {"tap": "0"})
    with recorder, pytest.raises(IncompatibleModelsError, match="runs more than once"):
        model(torch.rand(1, 3, 2))


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ({"path": "conv", "stride": 4}, "unknown key 'stride'"),
        ({"strides": [4]}, "no key 'path'"),
        ({"path": "conv", "num_tokens": 4}, "'num_tokens' describes an output only with 'channels'"),
        ({"path": "conv", "strides": [4, 8], "channels": [6]}, "'conv': one channel count per stride"),
        (4, "not 4"),
    ],
)
def test_taps_spelled_wrongly(tap, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TapSource.parse(tap)


def test_a_map_that_is_already_a_feature_map_keeps_its_mask() -> None:
    mask = torch.zeros(1, 2, 2, dtype=torch.bool)
    point = TapPoint(TapSpec("maps", (3,), (8,)))
    model = nn.Sequential(point)
    level = FeatureMap(torch.rand(1, 3, 2, 2), mask, 8)
    with TapRecorder(model, {"tap": "0"}) as recorder:
        model([level])
    assert recorder.values["tap"][0] is level


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(3, 4)
        self.pooled = TapPoint(TapSpec("vectors", (4,)))
        self.head = nn.Linear(4, 7)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.head(self.pooled(self.features(rows)))


def test_vectors_are_read_from_tap_points_and_by_path() -> None:
    model = Classifier()
    taps = {
        "pooled": "pooled",
        "logits": {"path": "head", "kind": "vectors", "channels": 7},
        "raw": "features",
    }
    with TapRecorder(model, taps) as recorder:
        logits = model(torch.randn(5, 3))
    assert recorder.values["logits"] is logits and recorder.values["pooled"].shape == (5, 4)
    assert recorder.values["raw"].shape == (5, 4)
    specs = tap_specs(model, {name: taps[name] for name in ("pooled", "logits")})
    assert specs == {"pooled": TapSpec("vectors", (4,)), "logits": TapSpec("vectors", (7,))}


def test_vectors_of_another_width_are_refused() -> None:
    tap = {"logits": {"path": "head", "kind": "vectors", "channels": 8}}
    with (
        pytest.raises(IncompatibleModelsError, match=r"vectors of shape \(B, 8\).*\(5, 7\)"),
        TapRecorder(model := Classifier(), tap),
    ):
        model(torch.randn(5, 3))


def test_vectors_have_no_tokens() -> None:
    with pytest.raises(ConfigError, match="vectors are one per image"):
        TapSource.parse({"path": "head", "kind": "vectors", "channels": 7, "num_tokens": 3})
