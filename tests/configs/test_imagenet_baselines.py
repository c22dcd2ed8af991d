"""The other methods of the paper's ImageNet table: each config takes a step on small models and random images."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from omegaconf import OmegaConf

from mokd_det.balancing import Amortized
from mokd_det.config import load_config
from mokd_det.distillation import MaskedKD
from mokd_det.errors import ConfigError
from tests.configs.test_imagenet_configs import IMAGENET, random_batches, step

BASELINES = IMAGENET / "baselines"
# config → terms, and what is smaller here
CONFIGS: dict[str, tuple[set[str], dict[str, object]]] = {
    "srd_deit_tiny": ({"kd_srd", "kl_kl"}, {"teacher.network.name": "regnety_002"}),
    "manifold_deit_tiny": (
        {"tokens_patch", "tokens_sample", "tokens_random", "kl_kl"},
        {
            "teacher.network.name": "cait_xxs24_224",
            "teacher.network.depth": 2,
            "teacher.network.img_size": 32,
            "method.parts.tokens.student_layers": [0, 1],
            "method.parts.tokens.teacher_layers": [0, -1],
        },
    ),
    "masked_kd_deit_tiny": (
        {"kl"},
        {
            "teacher.network.name": "cait_xxs24_224",
            "teacher.network.depth": 1,
            "teacher.network.img_size": 32,
            "method.keep": 2,
            "taps.attention.path": "network.blocks.1.attn.qkv",
            "taps.attention.num_tokens": 5,
        },
    ),
    "uskd_deit_tiny": (
        {"target", "nontarget", "weak"},
        {"taps.middle.path": "network.blocks.0", "taps.middle.num_tokens": 5},
    ),
}


CONFIGS |= {name.replace("tiny", "small"): value for name, value in CONFIGS.items()}
CONFIGS["masked_kd_deit_small"] = (
    {"kl"},
    {**CONFIGS["masked_kd_deit_tiny"][1], "teacher.network.name": "deit3_small_patch16_224"},
)


def small(name: str) -> OmegaConf:
    cfg = load_config(str(BASELINES / f"{name}.py"))
    cfg.model.student.num_classes = 10
    cfg.model.student.network.update({"img_size": 32, "depth": 2})
    if cfg.model.teacher is not None:
        cfg.model.teacher_checkpoint = ""
        cfg.model.teacher.num_classes = 10
    for key, value in CONFIGS[name][1].items():
        OmegaConf.update(cfg.model, key, value, force_add=True)
    cfg.dataloader.train = L(random_batches)()
    return cfg


def test_every_config_is_listed() -> None:
    assert {path.stem for path in BASELINES.glob("*.py")} == set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step(name: str) -> None:
    cfg = small(name)
    assert cfg.train.output_dir == f"output/{name}"
    assert cfg.train.max_iter == 300 * 1251 and cfg.optimizer.lr == 1e-3
    _, latest = step(cfg)
    losses = {key: value for key, value in latest.items() if key.startswith("loss_")}
    assert set(losses) == {"loss_cls", *(f"loss_distill_{term}" for term in CONFIGS[name][0])}
    assert all(math.isfinite(value) for value in losses.values())


def test_the_teachers_of_masked_kd_are_those_of_table_2() -> None:
    """CaiT-S24 and DeiT3-B, whose patches can be dropped: the real networks, on no memory."""
    for size, name, prefix in (("tiny", "Cait", 0), ("small", "VisionTransformer", 1)):
        cfg = load_config(str(BASELINES / f"masked_kd_deit_{size}.py"))
        with torch.device("meta"):
            teacher, student = instantiate(cfg.model.teacher), instantiate(cfg.model.student)
        assert type(teacher.network).__name__ == name
        method = MaskedKD(keep=98)
        method.inspect(student, teacher)
        assert method.num_patches == 196
        seen = []
        teacher.network.blocks[0].register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[0].shape[1])
        )
        heads = student.network.blocks[-1].attn.qkv.out_features
        attention = torch.zeros(1, 197, heads, device="meta")
        with method.teacher_pass(teacher, {"attention": attention}), torch.no_grad():
            teacher.network(torch.zeros(1, 3, 224, 224, device="meta"))
        assert seen == [98 + prefix]


@pytest.mark.parametrize("name", ["srd_deit_tiny", "uskd_deit_tiny"])
def test_published_signed_terms_are_refused_by_logarithms(name: str) -> None:
    cfg = small(name)
    cfg.balancer = L(Amortized)()
    with pytest.raises(
        ConfigError, match=r"Amortized takes logarithms, but loss 'loss_distill_\w+' can be 0 or negative"
    ):
        step(cfg)
