"""The configs of CIFAR-100 and of its stand-in: every pair with every method, both recipes, the published numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mokd_det.balancing import Amortized, FixedWeights
from mokd_det.balancing.objectives import Objectives
from mokd_det.classification import SyntheticShapes
from mokd_det.config import TrainSettings, load_config
from mokd_det.distillation import CRD, USKD, Combined, Distiller, MoKD, NoDistillation, ReviewKD
from mokd_det.engine.build import build_trainer
from mokd_det.errors import ConfigError
from mokd_det.experiments.method_grid import read_methods

ROOT = Path(__file__).parents[2]
CIFAR = ROOT / "configs" / "CIFAR100"
METHODS = [
    *("none", "kd", "dkd", "nkd", "uskd", "fitnet", "ofd", "review_kd", "rkd", "pkt", "crd", "srd", "vkd"),
    *("kd_pp", "dkd_pp", "review_kd_pp", "mokd", "mokd_fixed"),
]
# pair → parameters of ReviewKD's adapters, weights of DKD (nckd), ReviewKD, ReviewKD++ and DKD++
PAIRS = {
    "resnet56_resnet20": (114_278, 2.0, 0.6, (1.2, 1.0), (2.5, 4.0, 3.5)),
    "wrn_40_2_wrn_40_1": (216_006, 6.0, 5.0, (5.0, 4.0), (1.0, 6.0, 1.0)),
    "resnet32x4_resnet8x4": (1_808_774, 8.0, 5.0, (8.0, 1.0), (2.0, 8.0, 0.5)),
    "ResNet50_MobileNetV2": (27_933_192, 8.0, 6.0, (6.0, 2.0), (0.5, 8.0, 1.0)),
    "resnet32x4_ShuffleV1": (4_607_366, 8.0, 5.0, (7.0, 1.0), (0.5, 8.0, 4.0)),
    "resnet32x4_ShuffleV2": (4_195_718, 8.0, 8.0, (8.0, 1.5), (0.5, 6.0, 0.5)),
}


def load(name: str, *overrides: str) -> DictConfig:
    """A pair of networks, or "alone"."""
    if name == "alone":
        return load_config(str(CIFAR / "alone.py"), list(overrides))
    return load_config(str(CIFAR / "distill.py"), [f"choice.pair={name}", *overrides])


def weights(cfg: DictConfig) -> dict[str, dict[str, float]]:
    return OmegaConf.to_container(cfg.objectives, resolve=True)


@cache
def small(method: str) -> DictConfig:
    """The stand-in's config on a few synthetic images and with still smaller networks."""
    cfg = load_config(str(ROOT / "configs" / "fashion_pairs" / "distill.py"), [f"choice.method={method}"])
    cfg.pair.teacher_checkpoint = ""
    cfg.pair.train_images, cfg.pair.negatives = 200, 20
    cfg.dataloader.train.dataset = L(SyntheticShapes)(split="train", per_class=2)
    cfg.dataloader.test.dataset = L(SyntheticShapes)(split="val", per_class=1)
    cfg.dataloader.train.total_batch_size = 8
    for name in ("student", "teacher"):
        cfg.networks[name].model.network.depth = 8
        cfg.networks[name].model.network.widths = [4, 4, 8, 8] if name == "student" else [4, 8, 8, 16]
    return cfg


def test_every_choice_is_listed() -> None:
    cfg = load("resnet56_resnet20")
    assert set(cfg.pairs) == set(PAIRS) and set(cfg.methods) == set(METHODS)


@pytest.mark.parametrize("name", PAIRS)
def test_every_method_can_be_set_up_on_every_pair(name: str) -> None:
    base = load(name, "choice.method=none")
    student, teacher = instantiate(base.model.student), instantiate(base.model.teacher)
    assert sum(p.numel() for p in student.parameters()) < sum(p.numel() for p in teacher.parameters())
    assert teacher.network is not student.network and student.num_classes == 100
    for method in METHODS:
        base.choice.method = method
        node = base.model.method.copy()
        node._set_parent(base.model)
        built = instantiate(node)
        taps = OmegaConf.to_container(base.model.taps, resolve=True)
        Distiller(student, teacher, built, taps)
        expected = "" if method in ("none", "uskd") else base.pair.teacher_checkpoint
        assert base.model.teacher_checkpoint == expected
        if method == "review_kd":
            assert sum(p.numel() for p in built.parameters()) == PAIRS[name][0]


@pytest.mark.parametrize("name", PAIRS)
def test_published_weights(name: str) -> None:
    _, dkd, review, review_pp, dkd_pp = PAIRS[name]
    cfg = load(name)
    expected = {
        "none": ({}, 1.0),
        "kd": ({"kl": 0.9}, 0.1),
        "dkd": ({"tckd": 1.0, "nckd": dkd}, 1.0),
        "fitnet": ({"hint": 100.0}, 1.0),
        "rkd": ({"distance": 25.0, "angle": 50.0}, 1.0),
        "pkt": ({"pkt": 30000.0}, 1.0),
        "ofd": ({"ofd": 0.001}, 1.0),
        "crd": ({"crd": 0.8}, 1.0),
        "review_kd": ({"review": review}, 1.0),
        "review_kd_pp": ({"kd_review": review_pp[0], "nd_nd": review_pp[1]}, 1.0),
        "dkd_pp": ({"kd_tckd": dkd_pp[0], "kd_nckd": dkd_pp[1], "nd_nd": dkd_pp[2]}, 1.0),
        "vkd": ({"kd_pooled": 1.0, "kl_kl": 1.0}, 1.0),
    }
    for method, (terms, task) in expected.items():
        cfg.choice.method = method
        found = weights(cfg)
        assert found["task"] == {"loss_cls": task}
        assert found.get("distill", {}) == {f"loss_distill_{term}": value for term, value in terms.items()}
        assert type(instantiate(cfg.balancer)) is FixedWeights
    cfg.choice.method = "mokd"
    balancer = instantiate(cfg.balancer)
    assert type(balancer) is Amortized
    assert balancer.total == 2, "SGD feels the length of a step"
    assert cfg.model.method.parts.kl.temperature == 4


def test_the_recipes() -> None:
    first, second = load("wrn_40_2_wrn_40_1", "choice.recipe=RepDistiller"), load("wrn_40_2_wrn_40_1")
    for cfg, batch, rate, nesterov, drop in ((first, 64, 0.05, False, 150), (second, 128, 0.1, True, 151)):
        per_epoch = 50000 // batch
        optimizer = cfg.optimizer
        assert (cfg.dataloader.train.total_batch_size, optimizer.lr, optimizer.nesterov) == (
            batch,
            rate,
            nesterov,
        )
        assert (optimizer.momentum, optimizer.params.weight_decay, optimizer.params.decay_vectors) == (
            0.9,
            5e-4,
            True,
        )
        assert cfg.train.max_iter == 240 * per_epoch and cfg.train.eval_period == per_epoch
        multiplier = instantiate(cfg.lr_multiplier)
        rates = [multiplier((epoch + 0.5) / 240) for epoch in range(240)]
        assert rates == [1.0] * drop + [0.1] * 30 + [0.01] * 30 + [0.001] * (180 - drop)
    assert first.dataloader.test.transform.mean[0] == 0.5071
    assert second.dataloader.test.transform.mean[0] == pytest.approx(125.3 / 255)
    mobile = [
        load("resnet32x4_ShuffleV1", f"choice.recipe={name}").optimizer.lr
        for name in ("RepDistiller", "ReviewKD")
    ]
    assert mobile == [0.01, 0.02]


@pytest.mark.parametrize("network", ["resnet56", "MobileNetV2"])
def test_a_network_alone(network: str) -> None:
    cfg = load("alone", f"choice.network={network}")
    model = instantiate(cfg.model)
    assert set(weights(cfg)) == {"task"} and cfg.optimizer.lr == (0.1 if network == "resnet56" else 0.02)
    assert model.network.get_classifier().out_features == 100
    assert cfg.train.output_dir == f"output/cifar100/{network}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "choice.method=crdd",
            r"refers to 'methods\.crdd', but methods has no 'crdd'; did you mean 'crd'",
        ),
        ("choice.method=reviewkd", r"did you mean 'review_kd'\?"),
        ("choice.recipe=Review", r"recipes has no 'Review'; did you mean 'ReviewKD'\?"),
        ("choice.pair=resnet56", r"pairs has no 'resnet56'; known here: ResNet50_Mob"),
        ("pair.student=resnet21", r"model\.student refers to .*; did you mean 'resnet20'\?"),
        ("choice.metod=crd", r"unknown config key 'choice.metod'; did you mean 'choice.method'\?"),
    ],
)
def test_a_choice_that_does_not_exist(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("resnet56_resnet20", override)


def step(cfg: DictConfig) -> tuple[nn.Module, dict[str, float]]:
    """One training step."""
    torch.manual_seed(0)
    trainer = build_trainer(cfg, TrainSettings.from_config(cfg.train))
    if trainer.module.needs_preparation:
        trainer.module.prepare_method(instantiate(cfg.dataloader.preparation))
    with EventStorage() as storage:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 1
        trainer.model.train()
        trainer.run_step()
        return trainer.module, {key: value for key, (value, _) in storage.latest().items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_step_with_every_method(method: str) -> None:
    cfg = small(method)
    model, latest = step(cfg)
    terms = {key for key in latest if key.startswith("loss_distill_")}
    assert terms == set(weights(cfg).get("distill", {}))
    assert latest["loss_cls"] > 0 and all(torch.isfinite(p).all() for p in model.parameters())
    assert len(Objectives(weights(cfg))) == (1 if method == "none" else 2)
    assert all(p.grad is not None for p in model.student.parameters() if p.requires_grad)


def test_another_balancer_is_one_override() -> None:
    amortized = "balancer={_target_: mokd_det.balancing.Amortized}"
    for method in ("review_kd", "ofd"):
        cfg = load("resnet56_resnet20", f"choice.method={method}", amortized)
        assert type(instantiate(cfg.balancer)) is Amortized
        assert set(weights(cfg)["distill"]) == set(
            weights(load("resnet56_resnet20", f"choice.method={method}"))["distill"]
        )
    fixed = load("resnet56_resnet20", "balancer={_target_: mokd_det.balancing.FixedWeights}")
    assert type(instantiate(fixed.balancer)) is FixedWeights


def test_methods_for_comparisons() -> None:
    names = ["none", "uskd", "review_kd", "crd_amortized", "mokd"]
    every = [
        *METHODS,
        *(f"{name}_amortized" for name in METHODS if name not in ("none", "srd", "mokd", "mokd_fixed")),
    ]
    file = ROOT / "configs" / "common" / "cifar_comparison.py"
    assert [method.name for method in read_methods(file, every)] == every
    base = load("wrn_40_2_wrn_40_1")
    chosen = {}
    for method in read_methods(file, names):
        cfg = load("wrn_40_2_wrn_40_1", *method.overrides(base))
        plain = load("wrn_40_2_wrn_40_1", f"choice.method={method.name.removesuffix('_amortized')}")
        assert weights(cfg) == weights(plain)
        assert cfg.model.taps == plain.model.taps
        assert cfg.dataloader.train.negatives == plain.dataloader.train.negatives
        chosen[method.name] = cfg
    built = {name: instantiate(cfg.model.method) for name, cfg in chosen.items()}
    assert type(built["none"]) is NoDistillation and type(built["uskd"]) is USKD
    assert type(built["review_kd"]) is ReviewKD and built["review_kd"].warm_up.epochs == 20
    assert type(built["crd_amortized"]) is CRD and built["crd_amortized"].num_samples == 50000
    assert type(built["mokd"]) is Combined and type(built["mokd"].parts["kd"]) is MoKD
    balancers = {name: type(instantiate(cfg.balancer)) for name, cfg in chosen.items()}
    assert {name for name, kind in balancers.items() if kind is Amortized} == {"crd_amortized", "mokd"}
