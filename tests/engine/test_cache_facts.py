"""A teacher's cache under a configuration: what it depends on is named by the configuration's own keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig, OmegaConf

from mokd_det.config import TrainSettings, load_config
from mokd_det.data import build_train_loader
from mokd_det.distillation import Distiller, MoKD, TeacherCache
from mokd_det.engine.build import build_trainer
from mokd_det.engine.cache_facts import cache_facts
from mokd_det.errors import CacheError, ConfigError
from mokd_det.guard.policy import keep_batch
from mokd_det.guard.replay import replay_step
from tests.distillation.cached_views import NoisyMapper, records
from tests.distillation.conftest import FakeDetector

TOY_CONFIG = Path(__file__).with_name("toy_config.py")


def config(directory: Path, *overrides: str) -> DictConfig:
    """The toy configuration with a small distillation."""
    cfg = load_config(str(TOY_CONFIG), [f"train.output_dir={directory / 'run'}"])
    cfg.model = L(Distiller)(
        student=L(FakeDetector)(channels=8),
        teacher=L(FakeDetector)(channels="${..method.n}"),
        method=L(MoKD)(n=20),
        teacher_cache=L(TeacherCache)(directory=str(directory / "cache")),
    )
    cfg.dataloader.train = L(build_train_loader)(
        dataset=records(8), mapper=L(NoisyMapper)(), total_batch_size=4, seed=3, views=1
    )
    cfg.objectives = {"distill": ["loss_distill_*"], "task": ["loss_ce", "loss_bbox"]}
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))  # type: ignore[return-value]


def build(cfg: DictConfig) -> Any:
    settings = TrainSettings.from_config(cfg.train)
    torch.manual_seed(0)  # the teacher's weights
    return build_trainer(cfg, settings)


def facts(cfg: DictConfig) -> dict[str, str]:
    return cache_facts(cfg, None)


def test_a_trainer_opens_the_cache_before_the_first_step(tmp_path: Path) -> None:
    build(config(tmp_path, "train.amp.enabled=True", "train.amp.dtype=bfloat16"))
    stored = json.loads((tmp_path / "cache" / "cache.json").read_text())
    assert stored["dataloader.train.dataset.7.image_id"] == "7" and stored["model.teacher.channels"] == "20"
    assert stored["dataloader.train.mapper._target_"].endswith("cached_views.NoisyMapper")
    assert stored["the precision of the teacher's forward"] == "float32, autocast bfloat16"
    assert len(stored["the fingerprint of the training data"]) == 32


def test_a_configuration_that_changes_images_makes_it_stale(tmp_path: Path) -> None:
    build(config(tmp_path))
    with pytest.raises(CacheError) as caught:
        build(config(tmp_path, "dataloader.train.mapper.sizes=2"))
    assert "dataloader.train.mapper.sizes was absent and is 2" in str(caught.value)


def test_another_seed_of_random_augmentation_shows_in_the_pixels(tmp_path: Path) -> None:
    trained = build(config(tmp_path))
    trained.module.prepare_batch(next(iter(trained.data_loader)))
    other = build(config(tmp_path, "dataloader.train.seed=4"))
    with pytest.raises(CacheError, match=r"made from other pixels: the images, their augmentation, its seed"):
        other.module.prepare_batch(next(iter(other.data_loader)))


def test_keys_that_change_no_view_do_not_count(tmp_path: Path) -> None:
    plain = facts(config(tmp_path))
    other = ("total_batch_size=8", "num_workers=2", "views=3")
    assert facts(config(tmp_path, *(f"dataloader.train.{text}" for text in other), "train.seed=7")) == plain
    assert facts(config(tmp_path, "model.method.n=21")) != plain, "the teacher refers to it"


def test_without_views_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.dataloader.train.views = None
    with pytest.raises(ConfigError, match=r"set dataloader\.train\.views=1"):
        build(cfg)
    assert not (tmp_path / "cache").exists()


def test_a_kept_batch_is_replayed_without_the_cache(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    built = build(cfg)
    file = tmp_path / "kept.pth"
    loaded = [next(iter(built.data_loader))]
    keep_batch(file, built.module, loaded, "why", {"iteration": 0, "rank": 0, "seed": 0})
    (tmp_path / "cache" / "cache.json").unlink()
    (replayed,) = replay_step(cfg, str(file)).micro_batches
    assert not replayed.failure and set(replayed.losses) > {"loss_ce", "loss_distill_neck"}
    assert cfg.model.teacher_cache is not None


def test_it_is_switched_on_from_the_command_line(tmp_path: Path) -> None:
    quick_start = str(TOY_CONFIG.parents[2] / "configs" / "quickstart" / "mokd.py")
    cfg = load_config(
        quick_start,
        [
            "dataloader.train.views=1",
            f"model.teacher_cache={{_target_: mokd_det.distillation.TeacherCache, directory: {tmp_path}}}",
            "model.teacher_cache.precision=bfloat16",
            "model.teacher_stream=True",
        ],
    )
    assert cfg.model.teacher_cache.precision == "bfloat16" and cfg.dataloader.train.views == 1
