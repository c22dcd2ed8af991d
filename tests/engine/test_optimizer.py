from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from mokd_det.classification import ImageClassifier
from mokd_det.config import load_config
from mokd_det.distillation import Combined, Distiller, MoKD, ProjectorMatching, StiefelLinear, VkD
from mokd_det.engine import EpochCosineParamScheduler, get_timm_param_groups, get_vidt_param_groups
from mokd_det.engine.optimizer import vidt_param_group
from mokd_det.errors import ConfigError
from tests.classification.toy import ToyCnn, toy_batch, toy_vit
from tests.engine.toy import Recorder, ToyDetector, toy_item
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
        for group in get_vidt_param_groups(model, weight_decay=0.1, lr=1e-3, backbone_lr=1e-4, method_lr=5e-3)
    }
    assert groups["method_no_decay"]["weight_decay"] == 0.0
    assert groups["method_no_decay"]["params"] == list(model.method.parameters())
    assert groups["method"]["params"] == [model.projection.weight]
    assert groups["method"]["weight_decay"] == 0.1
    assert groups["backbone_decay"]["lr"] == 1e-4
    assert groups["method"]["lr"] == groups["method_no_decay"]["lr"] == 5e-3
    own = {group["name"]: group.get("lr") for group in get_timm_param_groups(model, method_lr=5e-3)}
    assert own["method"] == 5e-3 and own["decay"] is None
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


def classifier() -> ImageClassifier:
    return ImageClassifier(toy_vit(), num_classes=5)


def test_timms_groups_of_a_classifier():
    model = classifier()
    groups = {group["name"]: group for group in get_timm_param_groups(model, weight_decay=0.05, lr=1e-3)}
    assert {name: group["weight_decay"] for name, group in groups.items()} == {"no_decay": 0.0, "decay": 0.05}
    assert all(group["lr"] == 1e-3 for group in groups.values())
    theirs = param_groups_weight_decay(
        model.network, weight_decay=0.05, no_weight_decay_list=model.network.no_weight_decay()
    )
    for ours, reference in zip((groups["no_decay"], groups["decay"]), theirs, strict=True):
        assert set(ours["params"]) == set(reference["params"])
        assert ours["weight_decay"] == reference["weight_decay"]
    (everything,) = get_timm_param_groups(model, weight_decay=5e-4, decay_vectors=True)
    assert everything["weight_decay"] == 5e-4 and len(everything["params"]) == len(list(model.parameters()))
    with pytest.raises(ConfigError, match=r"optimizer\.params\.model is not set"):
        get_timm_param_groups()


@pytest.mark.parametrize(
    "method",
    [MoKD(), VkD(task="classification"), ProjectorMatching("orthogonal")],
    ids=["mokd", "vkd", "projector"],
)
def test_weight_decay_never_reaches_a_projection(method):
    """The published VkD classifier trains with a projection of zeros: decay destroys it in the first step."""
    torch.manual_seed(0)
    teacher = ImageClassifier(ToyCnn(width=40), num_classes=5)
    model = Distiller(classifier(), teacher, Combined({"kd": method}), {"pooled": "pooled"})
    model.student.taps["dist_logits"].register_forward_hook(lambda *_: None)
    groups = get_timm_param_groups(model, weight_decay=0.05)
    assert set(model.no_weight_decay_parameters()) == set(
        next(group for group in groups if group["name"] == "method_no_decay")["params"]
    )
    optimizer = torch.optim.AdamW(groups, lr=5e-4)
    model.train()
    for start in range(5):
        optimizer.zero_grad()
        losses = model(toy_batch([toy_item(index, size=6) for index in range(start, start + 4)]))
        losses["loss_distill_kd_pooled"].backward()
        assert model.student.network.pos_embed.grad.abs().sum() > 0
        optimizer.step()
        model.after_step()
    projections = [m for m in model.method.modules() if isinstance(m, StiefelLinear)]
    assert projections and all(float(m.orthogonality_error()) < 1e-5 for m in projections)
    assert all(m.weight.abs().sum() > 1 for m in projections)


@pytest.mark.parametrize("iterations_per_epoch", [1, 10])
def test_deits_learning_rates(iterations_per_epoch):
    """timm's scheduler, which DeiT steps once per epoch, is ours at the epochs' first iterations."""
    cfg = load_config(str(Path(__file__).parents[2] / "configs" / "ImageNet" / "deit_tiny.py"))
    schedule = instantiate(cfg.lr_multiplier)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = CosineLRScheduler(optimizer, t_initial=300, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    for epoch in range(300):
        theirs.step(epoch)
        wanted = optimizer.param_groups[0]["lr"]
        found = cfg.optimizer.lr * schedule(epoch * iterations_per_epoch / (300 * iterations_per_epoch))
        # Their warm-up ends at the base rate, ours on the cosine, seven ten-thousandths lower.
        assert found == pytest.approx(wanted, rel=1e-3), epoch
