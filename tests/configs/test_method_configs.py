"""The configs of other methods: mokd_vidt_nano.py but for the lines that name method and balancer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig, OmegaConf

from mokd_det.balancing import Amortized, FixedWeights
from mokd_det.config import TrainSettings, load_config
from mokd_det.distillation import DKD, Method, MoKD, ProjectorMatching, TokenMatching, VkD
from mokd_det.engine.build import build_trainer
from mokd_det.errors import IncompatibleModelsError
from tests.configs.test_configs import ROOT, random_batches

COCO = ROOT / "COCO"
CONFIGS: dict[str, tuple[type[Method], type, int]] = {
    # file → method, balancer, dimension of the common space of two 256-channel models
    "token_matching_vidt_nano": (TokenMatching, FixedWeights, 0),
    "vkd_vidt_nano": (VkD, FixedWeights, 0),
    "dkd_vidt_nano": (DKD, FixedWeights, 0),
    "projector_vidt_nano": (ProjectorMatching, FixedWeights, 0),
    "dto_kd_vidt_nano": (ProjectorMatching, Amortized, 0),
    "table3/row1_token_matching": (TokenMatching, FixedWeights, 0),
    "table3/row2_subspace": (MoKD, FixedWeights, 256),
    "table3/row3_multi_task": (MoKD, Amortized, 256),
    "table3/row4_high_dimensional": (MoKD, Amortized, 512),
}


def load(name: str, overrides: tuple[str, ...] = ()) -> DictConfig:
    return load_config(str(COCO / f"{name}.py"), list(overrides))


def resolved(cfg: DictConfig, *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The configuration as plain values."""
    cfg = cfg.copy()
    for key in without:
        OmegaConf.update(cfg, key, None, force_add=True)
    return OmegaConf.to_container(cfg, resolve=True)


def with_small_models(cfg: DictConfig) -> DictConfig:
    """The same with the quick start's models in the place of the large ones."""
    small = load_config(str(ROOT / "quickstart" / "mokd.py"))
    cfg.model.student, cfg.model.teacher = small.model.student, small.model.teacher
    cfg.model.teacher_checkpoint = cfg.train.init_checkpoint = ""
    return cfg


def step(cfg: DictConfig) -> tuple[torch.nn.Module, dict[str, float]]:
    """One training step of small models."""
    cfg = with_small_models(cfg)
    for node in (cfg.model.student, cfg.model.teacher):
        node.transformer.reference_init = (
            "learned"  # on a common grid, both models' boxes have the same order
        )
    cfg.dataloader.train = L(random_batches)(classes=10, size=64)
    torch.manual_seed(0)
    trainer = build_trainer(cfg, TrainSettings.from_config(cfg.train))
    with EventStorage() as storage:
        trainer.storage, trainer.iter, trainer.max_iter = storage, 0, 1
        trainer.model.train()
        trainer.run_step()
        return trainer.module, {name: value for name, (value, _) in storage.latest().items()}


def test_every_config_is_listed() -> None:
    found = {str(path.relative_to(COCO).with_suffix("")) for path in COCO.rglob("*.py")}
    # Other sizes and teachers are deltas of these: test_deltas.py.
    nano = {name for name in found if "tiny" not in name and "small" not in name}
    assert {name for name in nano if not name.startswith(("vidt", "mokd"))} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_only_method_and_balancer_differ(name: str) -> None:
    sections = ("model", "dataloader", "optimizer", "lr_multiplier", "train", "objectives")
    switches = ("model.method", "model.taps", "train.output_dir")
    main, other = (
        resolved(OmegaConf.masked_copy(load(config), sections), without=switches)
        for config in ("mokd_vidt_nano", name)
    )
    assert other == main
    assert load(name).train.output_dir == f"output/{name}".replace("projector", "projector_linear")


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step(name: str) -> None:
    method, balancer, dimension = CONFIGS[name]
    cfg = load(name)
    assert type(instantiate(cfg.balancer)) is balancer
    assert type(instantiate(cfg.model.method)) is method
    model, latest = step(cfg)
    student, teacher = model.student, model.teacher
    terms = {key for key in latest if key.startswith("loss_distill_")}
    if method is TokenMatching:
        assert terms == {"loss_distill_tokens"} and not list(model.method.parameters())
    elif method is DKD:
        assert terms == {"loss_distill_tckd", "loss_distill_nckd"} and not list(model.method.parameters())
    else:
        assert terms == {"loss_distill_patch", "loss_distill_neck", "loss_distill_head"}
    if balancer is FixedWeights:
        distillation = sum(latest[key] for key in terms)
        task = sum(v for k, v in latest.items() if k.startswith("loss_") and k not in terms)
        assert dict(cfg.balancer.weights) == {"distill": 4.0, "task": 1.0}
        assert distillation > 0 and task > 0
    else:
        assert latest["pi/distill"] + latest["pi/task"] == pytest.approx(1.0)
    if dimension:
        channels = student.taps["neck"].spec.channels[0]
        assert teacher.taps["neck"].spec.channels[0] == channels
        assert {head.n for head in model.method.heads.values()} == {channels * dimension // 256}
        assert all((head.metric is None) is (dimension == 256) for head in model.method.heads.values())


def test_the_last_row_is_the_main_config() -> None:
    last, main = (
        instantiate(load(name).model.method) for name in ("table3/row4_high_dimensional", "mokd_vidt_nano")
    )
    assert (last.head_options, last.n, last.high_dimensional) == (
        main.head_options,
        main.n,
        main.high_dimensional,
    )
    assert load("table3/row4_high_dimensional").balancer == load("mokd_vidt_nano").balancer


@pytest.mark.parametrize("projector", ["orthogonal", "mlp", "ensemble"])
def test_the_projector_is_one_override(projector: str) -> None:
    model, latest = step(load("projector_vidt_nano", (f"model.method.projector={projector}",)))
    assert {type(p).__name__.lower() for p in model.method.projectors.values()} == {f"{projector}projector"}
    assert latest["loss_distill_head"] > 0


@pytest.mark.parametrize(
    "name", ["token_matching_vidt_nano", "vkd_vidt_nano", "dkd_vidt_nano", "mokd_vidt_nano"]
)
def test_hungarian_matching_is_one_override(name: str) -> None:
    cfg = load(name, ("model.token_matching=hungarian",))
    _, by_prediction = step(cfg)
    _, by_index = step(load(name))
    (term, *_) = sorted(key for key in by_index if key.startswith("loss_distill_"))
    assert by_prediction[term] > 0 and by_prediction[term] != by_index[term]
    for key in ("loss_ce", "loss_bbox", "loss_giou"):
        assert by_prediction[key] == by_index[key]


def test_logits_of_other_classes_are_refused() -> None:
    cfg = with_small_models(load("dkd_vidt_nano"))
    cfg.model.teacher.num_classes = 7
    with pytest.raises(
        IncompatibleModelsError, match=r"DKD .* the student has 10 classes and the teacher 7;"
    ):
        instantiate(cfg.model)


def test_the_quick_starts_methods_are_trials_of_the_search() -> None:
    trials = LazyConfig.load(str(ROOT / "common" / "quickstart_search.py")).methods
    chosen = LazyConfig.load(str(ROOT / "common" / "quickstart_methods.py")).methods
    best = {
        "none": "none_wd0.01_lr2",
        "token_matching": "tm_0.0625_lr2",
        "vkd": "vkd_0.0625_lr2",
        "mokd": "mokd_similarity_lr4",
        "mokd_regression": "mokd_regression_lr2",
        "mokd_standardized": "mokd_standardized_lr4",
    }
    assert len(trials) == 32
    for name, trial in best.items():
        for part in ("method", "balancer"):
            assert chosen[name][part] == trials[trial][part], name
        assert chosen[name].settings["optimizer.lr"] == trials[trial].settings["optimizer.lr"], name
    # What the choice for the student alone leaves to the config.
    cfg = load_config(str(ROOT / "quickstart" / "mokd.py"))
    assert (
        cfg.optimizer.params.weight_decay
        == trials["none_wd0.01_lr2"].settings["optimizer.params.weight_decay"]
    )
