"""Distillation between Hugging Face detectors of any two families, and from vision transformers without boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection import fcos_resnet50_fpn

from mokd_det.balancing import Objectives
from mokd_det.distillation import (
    FGD,
    KDDETR,
    LD,
    MGD,
    PKD,
    Combined,
    DETRDistill,
    Distiller,
    FoundationFeatures,
    HungarianTokenMatching,
    Method,
    MoKD,
    ProjectorMatching,
    TapRecorder,
    TokenMatching,
    VkD,
)
from mokd_det.distillation.tap_pairing import teacher_levels
from mokd_det.engine import MoKDTrainer
from mokd_det.errors import CheckpointError, ConfigError, IncompatibleModelsError
from mokd_det.modeling import FeatureTeacher, SeveralTeachers, TorchvisionDetector, TransformersDetector
from tests.balancing.toy import BALANCERS
from tests.distillation.test_unedited_detectors import retinanet
from tests.modeling.test_vidt import small_vidt
from tests.modeling.tiny_transformers import tiny_config

pytest.importorskip("transformers")

OBJECTIVES = {"distill": ["loss_distill_*"], "task": ["loss_[!d]*", "loss_ddf*"]}
SIDE = 64


def hf(name: str, **options: Any) -> TransformersDetector:
    torch.manual_seed(sum(map(ord, name)))
    config = tiny_config(f"{name}ForObjectDetection", **options.pop("config", {}))
    return TransformersDetector(config, image_size=SIDE, **options)


@cache
def teacher(name: str) -> nn.Module:
    """Shared: a teacher is frozen and left as it is."""
    return small_vidt(num_classes=3) if name == "ViDT" else hf(name)


def batch(side: int = SIDE) -> list[dict[str, Any]]:
    items = []
    for seed, (boxes, classes) in enumerate(
        [([[8.0, 8, 40, 50], [2, 4, 20, 30]], [2, 0]), ([[20.0, 10, 60, 60]], [1])]
    ):
        instances = Instances((side, side))
        instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor(boxes)), torch.tensor(classes)
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=generator)
        items.append({"image": image, "instances": instances, "height": side, "width": side})
    return items


def trainer(model: nn.Module, balancer: str = "amortized", objectives: Any = None) -> MoKDTrainer:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    objectives = Objectives(objectives or OBJECTIVES)
    return MoKDTrainer(model, [batch()] * 3, optimizer, objectives=objectives, balancer=BALANCERS[balancer]())


PAIRS = [
    ("RTDetrV2", "DFine"),
    ("DFine", "Deimv2"),
    ("Deimv2", "RTDetr"),
    ("DeformableDetr", "Detr"),
    ("ConditionalDetr", "DabDetr"),
    ("LwDetr", "LwDetr"),
    ("RfDetr", "RfDetr"),
    ("Yolos", "RfDetr"),
    ("ViDT", "RTDetr"),
    ("RTDetr", "ViDT"),
]


@pytest.mark.parametrize(("student", "master"), PAIRS)
def test_one_configuration_trains_every_pair(student: str, master: str) -> None:
    own = (
        small_vidt(num_classes=3)
        if student == "ViDT"
        else hf(student, config={"num_queries": 6} if student == master else {})
    )
    model = Distiller(
        own,
        teacher(master),
        MoKD(),
        token_matching=HungarianTokenMatching(other_classes="boxes"),
        tap_pairing="common",
    ).train()
    before = {name: value.clone() for name, value in model.student.state_dict().items()}
    teacher_before = [value.clone() for value in teacher(master).state_dict().values()]
    run = trainer(model)
    run.train(0, 1)
    counted = [(k, v) for k, v in model.student.state_dict().items() if k.endswith("num_batches_tracked")]
    assert all(int(value) - int(before[name]) in (0, 1) for name, value in counted)
    after = model.student.state_dict()
    assert all(bool(value.isfinite().all()) for value in after.values() if value.is_floating_point())
    moved = [name for name, value in model.student.named_parameters() if not torch.equal(value, before[name])]
    assert len(moved) > 0.7 * len([p for p in model.student.parameters() if p.requires_grad])
    unchanged = zip(teacher_before, teacher(master).state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in unchanged)
    losses = model(batch())
    terms = {name: value for name, value in losses.items() if name.startswith("loss_distill_")}
    assert set(terms) == {"loss_distill_patch", "loss_distill_neck", "loss_distill_head"}
    for value in terms.values():
        gradients = torch.autograd.grad(
            value, list(model.shared_parameters()), allow_unused=True, retain_graph=True
        )
        assert any(g is not None and g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_convolutional_students_of_a_transformers_teacher(detector: str) -> None:
    paths = {"retinanet": "backbone", "fcos": "detector.backbone"}
    if detector == "retinanet":
        student, tap = retinanet(18, 16), {"path": "backbone", "strides": [8, 16, 32]}
    else:
        network = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
        student = TorchvisionDetector(network)
        tap = {
            "path": paths[detector],
            "strides": [8, 16, 32, 64, 128],
            "channels": [256] * 5,
            "keep": [8, 16, 32],
        }
    model = Distiller(
        student, teacher("DFine"), MoKD(), taps={"patch": {"student": tap, "teacher": "patch"}}
    ).train()
    with EventStorage():
        losses = model(batch())
    losses["loss_distill_patch"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())


METHODS: dict[str, Callable[[], Method]] = {
    "token_matching": TokenMatching,
    "vkd": VkD,
    "mokd": MoKD,
    "mlp": lambda: ProjectorMatching("mlp"),
    "pkd": PKD,
    "mgd": MGD,
    "fgd": FGD,
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_maps_and_tokens(method: str) -> None:
    maps_only = method in ("pkd", "mgd", "fgd")
    model = Distiller(
        hf("RTDetrV2"),
        teacher("DFine"),
        METHODS[method](),
        taps={"patch": "patch"} if maps_only else {name: name for name in ("patch", "neck", "head")},
        token_matching="index" if maps_only else "hungarian",
        tap_pairing="common",
    ).train()
    torch.manual_seed(5)
    first = model(batch())
    torch.manual_seed(5)
    second = model(batch())
    assert all(torch.equal(first[name], second[name]) for name in first if "mgd" not in name)
    sum(value for name, value in first.items() if "distill" in name).backward()


# One of each class; tests/balancing/ has their options.
ONE_OF_EACH = sorted({type(make()): name for name, make in BALANCERS.items() if name != "fixed"}.values())


@pytest.mark.parametrize("balancer", ONE_OF_EACH)
def test_every_balancer_steps(balancer: str) -> None:
    torch.manual_seed(0)
    taps = {"patch": "patch"}
    model = Distiller(hf("RTDetrV2"), teacher("DFine"), MoKD(), taps=taps).train()
    run = trainer(model, balancer)
    run.train(0, 2)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_levels_are_paired_by_relative_depth() -> None:
    assert teacher_levels(6, 6) == [0, 1, 2, 3, 4, 5]
    assert teacher_levels(6, 7) == [1, 2, 3, 4, 5, 6]
    assert teacher_levels(3, 6) == [1, 3, 5] and teacher_levels(6, 3) == [0, 0, 1, 1, 2, 2]
    assert teacher_levels(1, 4) == [3] and teacher_levels(4, 1) == [0, 0, 0, 0]


def test_what_cannot_be_paired_is_refused_with_both_shapes() -> None:
    with pytest.raises(
        IncompatibleModelsError, match=r"tokens \(2, B, 9, 16\).*tokens \(3, B, 8, 16\).*number of tokens"
    ):
        Distiller(hf("RTDetrV2"), teacher("DFine"), MoKD(), taps={"head": "head"})
    with pytest.raises(IncompatibleModelsError, match=r"\(2, B, 8, 16\).*\(3, B, 8, 16\).*decoder levels"):
        Distiller(hf("RTDetrV2", config={"num_queries": 8}), teacher("DFine"), MoKD(), taps={"head": "head"})
    with pytest.raises(
        IncompatibleModelsError, match=r"\(B, 16, H/16, W/16\).*\(B, 32, H/32, W/32\).*no stride in common"
    ):
        Distiller(hf("RfDetr"), teacher("Detr"), MoKD(), taps={"patch": "patch"}, tap_pairing="common")
    other = hf("RTDetrV2", num_classes=5)
    with pytest.raises(IncompatibleModelsError, match="predicts 5 classes and the teacher 3"):
        Distiller(other, teacher("DFine"), MoKD(), token_matching="hungarian", tap_pairing="common")
    mixed = hf("RTDetrV2", class_names=["dog", "cat", "bird"])
    with pytest.raises(IncompatibleModelsError, match="3 classes and the teacher 3 others"):
        Distiller(mixed, teacher("DFine"), MoKD(), token_matching="hungarian", tap_pairing="common")
    # A student that stretches its images and a teacher that does not show other pixels in cells of the same place.
    vidt_teacher = Distiller(
        hf("RTDetr"), teacher("ViDT"), MoKD(), taps={"patch": "patch"}, tap_pairing="common"
    )
    with pytest.raises(IncompatibleModelsError, match="the student resizes its images itself"):
        vidt_teacher.train()(batch(60))


# --- feature-only teachers -----------------------------------------------------------------------------------

VIT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
DINOV3 = {"model_type": "dinov3_vit", **VIT, "intermediate_size": 24, "num_register_tokens": 2}
DINOV2 = {"model_type": "dinov2", **VIT, "patch_size": 14, "image_size": 42}


def timm_folder(path: Path) -> Path:
    torch.manual_seed(0)
    small = {"patch_size": 16, "img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, **small)
    settings = {
        **model.pretrained_cfg,
        "num_classes": 0,
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "input_size": [3, 32, 32],
    }
    settings = {key: value for key, value in settings.items() if key not in ("hf_hub_id", "url")}
    description = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "num_features": 24,
        "model_args": small,
    }
    description["pretrained_cfg"] = settings
    (path / "config.json").write_text(json.dumps(description))
    save_file(model.state_dict(), path / "model.safetensors")
    return path


def test_a_vision_transformer_teaches_maps_and_needs_no_labels(tmp_path: Path) -> None:
    (tmp_path / "timm").mkdir()
    for source in (DINOV2, DINOV3, {"model_type": "vit", **VIT}, timm_folder(tmp_path / "timm")):
        master = FeatureTeacher(source, stride=16).eval()
        maps = master([{"image": item["image"][:, :, :48]} for item in batch()])
        assert [tuple(level.tensor.shape) for level in maps] == [(2, 24, 4, 3)] and maps[
            0
        ].padding_mask is None
        model = Distiller(
            hf("RTDetrV2"),
            master,
            FoundationFeatures(),
            taps={"patch": {"student": {"path": "patch", "strides": [16]}, "teacher": "patch"}},
        ).train()
        losses = model(batch())
        losses["loss_distill_patch"].backward()
        assert 0 < float(losses["loss_distill_patch"]) < 2
    assert torch.allclose(master.pixel_mean.flatten(), torch.full((3,), 127.5))  # the folder's own statistics


def test_a_feature_teacher_sees_what_a_resizing_student_sees() -> None:
    master = FeatureTeacher(DINOV2, stride=16, image_size=SIDE).eval()
    taps = {"patch": {"student": {"path": "patch", "strides": [16]}, "teacher": "patch"}}
    model = Distiller(hf("RTDetrV2"), master, FoundationFeatures(), taps=taps).train()
    assert float(model(batch(80))["loss_distill_patch"]) > 0
    refused = Distiller(
        hf("RTDetrV2"), FeatureTeacher(DINOV2, stride=16), FoundationFeatures(), taps=taps
    ).train()
    with pytest.raises(IncompatibleModelsError, match="the student resizes"):
        refused(batch(80))


def test_two_teachers_are_three_objectives() -> None:
    teachers = SeveralTeachers(detector=hf("DFine"), foundation=FeatureTeacher(DINOV3, stride=32))
    method = Combined(
        {"detector": MoKD(), "foundation": FoundationFeatures()},
        taps={"detector": ["patch", "head"], "foundation": ["deep"]},
    )
    model = Distiller(
        hf("RTDetrV2"),
        teachers,
        method,
        taps={
            "patch": {"student": "patch", "teacher": "detector.taps.patch"},
            "head": {"student": "head", "teacher": "detector.taps.head"},
            "deep": {"student": {"path": "patch", "strides": [32]}, "teacher": "foundation.taps.patch"},
        },
        token_matching="hungarian",
        prediction_taps={
            name: {"student": name, "teacher": f"detector.taps.{name}"} for name in ("logits", "boxes")
        },
        tap_pairing="common",
    ).train()
    objectives = {
        "detector": ["loss_distill_detector_*"],
        "foundation": ["loss_distill_foundation_*"],
        "task": OBJECTIVES["task"],
    }
    run = trainer(model, "amortized", objectives)
    run.train(0, 2)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert len(run.objectives.names) == 3


def test_bad_feature_teachers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiples of stride=32"):
        FeatureTeacher(DINOV2, stride=32, image_size=80)
    with pytest.raises(ConfigError, match="no square patches"):
        FeatureTeacher(
            {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4}
        )
    folder = timm_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="timm cannot load vit_tiny_patch16_224"):
        FeatureTeacher(folder)


# --- decoders that are asked again --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["RTDetr", "RTDetrV2", "DFine", "Deimv2"])
def test_a_decoder_asked_for_its_own_queries_answers_as_the_model(name: str) -> None:
    model = hf(name).eval()
    taps = {key: key for key in ("logits", "boxes", "head_logits", "head_boxes") if key in model.taps}
    with torch.no_grad(), model.query_decoder() as decoder, TapRecorder(model, taps) as recorder:
        model(batch())
    with torch.no_grad():
        logits, boxes = decoder(decoder.queries)
    torch.testing.assert_close(logits[-1], recorder.values["logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(boxes[-1], recorder.values["boxes"], rtol=1e-4, atol=1e-4)
    if "head_logits" in taps:
        torch.testing.assert_close(logits, recorder.values["head_logits"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(boxes, recorder.values["head_boxes"], rtol=1e-4, atol=1e-4)
    assert hf("Detr").query_decoder() is None


@pytest.mark.parametrize(
    ("student", "teacher_name", "method", "taps"),
    [
        ("DFine", "RTDetr", lambda: KDDETR(general=4), ("logits", "boxes")),
        ("RTDetrV2", "ViDT", lambda: KDDETR(general=4), ("logits", "boxes")),
        ("RTDetr", "RTDetrV2", DETRDistill, ("patch", "head", "head_logits", "head_boxes")),
        ("DFine", "Deimv2", LD, ("corners", "logits")),
    ],
)
def test_query_methods_train_hugging_face_students(student, teacher_name, method, taps) -> None:
    matching = "hungarian" if method is LD else "index"
    model = Distiller(
        hf(student), teacher(teacher_name), method(), taps={tap: tap for tap in taps}, token_matching=matching
    ).train()
    losses = model(batch())
    terms = {name: value for name, value in losses.items() if name.startswith("loss_distill_")}
    assert terms and all(value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    reached = [p for p in model.student.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert reached
