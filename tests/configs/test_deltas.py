"""Shipped configurations that differ from another one by what they say, and by nothing else."""

from __future__ import annotations

from functools import cache

import pytest

from tests.configs.resolved import ROOT, flat, resolved

BACKBONE = "student.backbone._target_"
CHECKPOINT, OUTPUT = "train.init_checkpoint", "train.output_dir"
# file → the one it is compared with, the sections or keys that differ
DELTAS = {
    "COCO/vidt_tiny": ("COCO/vidt_nano", {"model.backbone._target_", CHECKPOINT}),
    "COCO/mokd_vidt_tiny": ("COCO/mokd_vidt_nano", {f"model.{BACKBONE}", CHECKPOINT}),
    "COCO/mokd_vidt_small": ("COCO/mokd_vidt_tiny", {f"model.{BACKBONE}", CHECKPOINT}),
    "COCO/mokd_vidt_nano_from_small": (
        "COCO/mokd_vidt_nano",
        {"model.teacher.backbone._target_", "model.teacher_checkpoint"},
    ),
    "COCO/mokd_vidt_nano_three_objectives": ("COCO/mokd_vidt_nano", {"objectives"}),
    "COCO/vkd_vidt_nano": ("COCO/token_matching_vidt_nano", {"model.method"}),
    "COCO/token_matching_vidt_nano": ("COCO/mokd_vidt_nano", {"model.method", "balancer"}),
    **{
        f"COCO/{method}_vidt_{size}": (f"COCO/{method}_vidt_nano", {f"model.{BACKBONE}", CHECKPOINT})
        for method in ("token_matching", "vkd")
        for size in ("tiny", "small")
    },
    **{
        f"COCO/{method}_vidt_{size}_from_small": (
            f"COCO/mokd_vidt_{size}_from_small",
            {"model.method", "balancer"},
        )
        for method in ("token_matching", "vkd")
        for size in ("nano", "tiny")
    },
    "COCO/dto_kd_vidt_nano": ("COCO/mokd_vidt_nano", {"model.method"}),
    "ImageNet/dto_kd_deit_tiny": ("ImageNet/mokd_deit_tiny", {"model.method.parts.kd", "train.clip_grad"}),
    "ImageNet/projector_deit_tiny": ("ImageNet/vkd_deit_tiny", {"model.method.parts.kd"}),
    "COCO/dkd_vidt_nano": ("COCO/vkd_vidt_nano", {"model.method", "model.taps"}),
    "COCO/table3/row2_subspace": ("COCO/table3/row1_token_matching", {"model.method"}),
    "COCO/table3/row3_multi_task": ("COCO/table3/row2_subspace", {"balancer"}),
    "COCO/table3/row4_high_dimensional": ("COCO/table3/row3_multi_task", {"model.method"}),
    "ImageNet/mokd_deit_small": ("ImageNet/mokd_deit_tiny", {"model.student.network.name"}),
    "ImageNet/soft_deit_tiny": ("ImageNet/hard_deit_tiny", {"model.method"}),
    "ImageNet/vkd_deit_tiny": ("ImageNet/mokd_deit_tiny", {"model.method.parts.kd", "balancer"}),
    "ImageNet/mokd_deit_tiny_three_objectives": ("ImageNet/mokd_deit_tiny", {"objectives"}),
    "custom/mokd_vidt_tiny": ("custom/mokd_vidt_nano", {f"model.{BACKBONE}", CHECKPOINT}),
}


@cache
def keys(name: str) -> dict[str, object]:
    return flat(resolved(ROOT / "configs" / f"{name}.py"))


@pytest.mark.parametrize("name", DELTAS)
def test_a_file_differs_from_its_base_in_what_it_says(name: str) -> None:
    base, expected = DELTAS[name]
    parts = {
        "mokd_three_objectives",
        "token_and_features",
        "dist_token",
        "mean",
    }  # what sections are taken from
    mine, others = keys(name), keys(base)
    differing = {
        key
        for key in {*mine, *others}
        if mine.get(key, ...) != others.get(key, ...) and key.split(".")[0] not in parts
    }
    for prefix in {*expected, OUTPUT}:
        found = {key for key in differing if key == prefix or key.startswith(f"{prefix}.")}
        assert found, f"{prefix} is the same"
        differing -= found
    assert not differing
