from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn

from mokd_det.engine import EpochCosineParamScheduler, get_vidt_param_groups
from mokd_det.engine.optimizer import vidt_param_group
from mokd_det.errors import ConfigError
from tests.engine.toy import Recorder, ToyDetector
from tests.modeling.golden import build

GOLDENS = json.loads((Path(__file__).parents[1] / "data" / "engine_goldens.json").read_text())


@pytest.fixture(scope="module")
def nano() -> nn.Module:
    return build("vidt_swin_nano", filled=False)


def test_groups_of_the_official_model(nano):
    golden = GOLDENS["optimizer_groups"]["models"]["swin_nano"]
    counted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in nano.named_parameters():
        group = counted[vidt_param_group(name, parameter)]
        group[0] += 1
        group[1] += parameter.numel()
    assert dict(counted) == golden["tensors_and_numbers"]

    trained = sum(parameter.numel() for group in get_vidt_param_groups(nano) for parameter in group["params"])
    everything = sum(numbers for _, numbers in golden["tensors_and_numbers"].values())
    assert trained == everything - golden["never_gets_gradient"]


def test_weight_decay_of_the_official_groups(nano):
    golden = GOLDENS["optimizer_groups"]["weight_decay"]
    found = {group["name"]: group["weight_decay"] for group in get_vidt_param_groups(nano, weight_decay=1e-4)}
    assert found == golden
    decayed = {
        parameter
        for group in get_vidt_param_groups(nano)
        if group["weight_decay"]
        for parameter in group["params"]
    }
    parameters = dict(nano.named_parameters())
    table = next(name for name in parameters if name.endswith("relative_position_bias_table"))
    assert parameters[table] in decayed
    assert parameters["backbone.det_token"] not in decayed
    assert parameters["backbone.det_pos_embed"] not in decayed


def test_a_methods_projections_are_not_decayed():
    model = Recorder()
    model.projection = nn.Linear(2, 2, bias=False)
    groups = {
        group["name"]: group
        for group in get_vidt_param_groups(model, weight_decay=0.1, lr=1e-3, backbone_lr=1e-4)
    }
    assert groups["method_no_decay"]["weight_decay"] == 0.0
    assert groups["method_no_decay"]["params"] == list(model.method.parameters())
    assert groups["method"]["params"] == [model.projection.weight]
    assert groups["method"]["weight_decay"] == 0.1
    assert groups["backbone_decay"]["lr"] == 1e-4
    assert groups["head"]["lr"] == 1e-3
    every = [parameter for group in groups.values() for parameter in group["params"]]
    assert len(every) == len(set(every)) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out():
    model = ToyDetector()
    model.backbone.requires_grad_(False)
    assert {group["name"] for group in get_vidt_param_groups(model)} == {"head"}
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        get_vidt_param_groups(model)
    with pytest.raises(ConfigError, match=r"optimizer\.params\.model is not set"):
        get_vidt_param_groups()


def test_groups_build_an_optimizer():
    optimizer = torch.optim.AdamW(get_vidt_param_groups(ToyDetector()), lr=3e-4)
    assert all(group["lr"] == 3e-4 for group in optimizer.param_groups)


@pytest.mark.parametrize("epochs", [50, 150])
@pytest.mark.parametrize("iterations_per_epoch", [1, 3, 7329])
def test_learning_rates_of_the_official_schedule(epochs, iterations_per_epoch):
    schedule = EpochCosineParamScheduler(epochs, end_value=1e-3)
    max_iter = epochs * iterations_per_epoch
    for epoch, expected in enumerate(GOLDENS["lr_by_epoch"][str(epochs)]):
        first, last = epoch * iterations_per_epoch, (epoch + 1) * iterations_per_epoch - 1
        for iteration in {first, last}:
            assert 1e-4 * schedule(iteration / max_iter) == pytest.approx(expected, rel=1e-12), (
                epoch,
                iteration,
            )


def test_the_schedule_has_a_value_at_its_end_and_needs_an_epoch():
    schedule = EpochCosineParamScheduler(50, end_value=1e-3)
    assert schedule(1.0) == schedule(0.999)
    assert EpochCosineParamScheduler(1, end_value=0.5)(1.0) == 1.0
    with pytest.raises(ConfigError, match="num_epochs is 0"):
        EpochCosineParamScheduler(0, end_value=0.1)
