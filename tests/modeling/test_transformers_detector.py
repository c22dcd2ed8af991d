"""Every Hugging Face detector behind Detectron2's interface: losses, predictions, taps, sources."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mokd_det.distillation.taps import TapRecorder, tap_specs
from mokd_det.engine import get_vidt_param_groups
from mokd_det.errors import CheckpointError, ConfigError, MoKDError
from mokd_det.modeling import TransformersDetector
from mokd_det.modeling.transformers_family import REFUSED
from mokd_det.modeling.transformers_taps import class_logits
from tests.modeling.tiny_transformers import LABELS, TINY, tiny_config

transformers = pytest.importorskip("transformers")

TAPS = ("patch", "neck", "head", "logits", "boxes")


@cache
def built(name: str) -> TransformersDetector:
    torch.manual_seed(0)
    return TransformersDetector(tiny_config(name), image_size=None if name in PADDED else 64)


PADDED = {
    "DetrForObjectDetection",
    "TableTransformerForObjectDetection",
    "ConditionalDetrForObjectDetection",
    "DabDetrForObjectDetection",
    "DeformableDetrForObjectDetection",
}


@pytest.fixture(params=sorted(TINY))
def detector(request: pytest.FixtureRequest) -> TransformersDetector:
    return built(request.param).train()


def item(height: int, width: int, boxes: list[list[float]], classes: list[int]) -> dict[str, Any]:
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int32)
    generator = torch.Generator().manual_seed(height + width)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances, "height": 2 * height, "width": 3 * width}


@pytest.fixture
def batch() -> list[dict[str, Any]]:
    return [item(64, 48, [[8, 8, 40, 50], [2, 4, 20, 30]], [2, 0]), item(56, 64, [], [])]


def test_every_class_of_the_mapping_is_served_or_refused() -> None:
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES
    assert set(mapping.values()) - set(TINY) == {mapping[kind] for kind in REFUSED}
    for kind, reason in REFUSED.items():
        with pytest.raises(ConfigError, match=kind) as caught:
            TransformersDetector({"model_type": kind})
        assert reason in str(caught.value)


def test_losses_sum_to_transformers_own(detector: TransformersDetector, batch: list[dict[str, Any]]) -> None:
    pixels, padding, _ = detector.preprocess(batch)
    options: dict[str, Any] = {"pixel_values": pixels, "labels": detector.labels(batch)}
    if detector.family.masks:
        mask = torch.ones(pixels.shape[0], *pixels.shape[2:], dtype=torch.long)
        options["pixel_mask"] = mask if padding is None else (~padding).long()
    plain = copy.deepcopy(detector.detector)
    del plain._loss_function
    torch.manual_seed(3)
    own = plain(**options).loss
    torch.manual_seed(3)
    losses = detector(batch)
    assert all(name.startswith("loss_") and value.ndim == 0 and value >= 0 for name, value in losses.items())
    torch.testing.assert_close(sum(losses.values()), own, rtol=1e-5, atol=1e-5)


def test_every_trainable_parameter_gets_a_gradient_even_without_objects(
    detector: TransformersDetector,
) -> None:
    for boxes, classes in (([[8.0, 8.0, 40.0, 50.0]], [1]), ([], [])):
        detector.zero_grad(set_to_none=True)
        losses = detector([item(64, 48, boxes, classes), item(56, 64, [], [])])
        sum(losses.values()).backward()
        assert [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []
    detector.zero_grad(set_to_none=True)


@pytest.mark.parametrize("training", [True, False])
def test_taps_are_as_described(
    detector: TransformersDetector, batch: list[dict[str, Any]], training: bool
) -> None:
    detector.train(training)
    specs = tap_specs(detector, {name: name for name in TAPS})
    torch.manual_seed(3)
    with TapRecorder(detector, {name: name for name in TAPS}) as recorder:
        detector(batch)
    values: dict[str, Any] = recorder.values
    pixels, padding, _ = detector.preprocess(batch)
    assert [tuple(level.tensor.shape[2:]) for level in values["patch"]] == [
        tuple(side // level.stride for side in pixels.shape[2:]) for level in values["patch"]
    ]
    assert all((level.padding_mask is None) == (padding is None) for level in values["patch"])
    assert values["head"].shape == (
        specs["head"].num_levels,
        2,
        detector.num_queries,
        specs["head"].channels[0],
    )
    assert values["neck"].shape == values["head"].shape[1:]
    assert values["logits"].shape == (2, detector.num_queries, 3)
    assert bool(((values["boxes"] >= 0) & (values["boxes"] <= 1)).all())
    if training:
        touched = [values["head"][-1], values["neck"], *(level.tensor for level in values["patch"])]
        for value in touched:
            gradients = torch.autograd.grad(
                value.square().sum(), [p for p in detector.parameters() if p.requires_grad], allow_unused=True,
                retain_graph=True,
            )  # fmt: skip
            assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_denoising_and_groups_do_not_change_what_the_taps_show(batch: list[dict[str, Any]]) -> None:
    """In training mode, with and without labels for the denoising, the detector's own queries are the same."""
    for name in ("RTDetrV2ForObjectDetection", "DFineForObjectDetection", "Deimv2ForObjectDetection"):
        detector = built(name).train()
        pixels, padding, _ = detector.preprocess(batch)
        found = []
        for labels in (detector.labels(batch), None):
            with TapRecorder(detector, {"head": "head", "logits": "logits"}) as recorder, torch.no_grad():
                detector._run(pixels, padding, labels)
            found.append(recorder.values)
        for tap in found[0]:
            torch.testing.assert_close(found[0][tap], found[1][tap], rtol=1e-4, atol=1e-5)


def test_training_repeats_to_the_bit(detector: TransformersDetector, batch: list[dict[str, Any]]) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(detector(batch))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_predictions_are_those_of_transformers_post_processing(
    detector: TransformersDetector, batch: list[dict[str, Any]]
) -> None:
    detector.eval()
    processor = getattr(transformers, detector.family.processor)()
    with torch.no_grad():
        pixels, padding, _ = detector.preprocess(batch)
        logits, boxes = detector.detect_tensors(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool)
                                                if padding is None else padding)  # fmt: skip
        found = detector(batch)
    theirs = processor.post_process_object_detection(
        SimpleNamespace(logits=logits, pred_boxes=boxes), threshold=0.0, target_sizes=[(128, 144), (112, 192)]
    )
    for ours, other in zip(found, theirs, strict=True):
        instances = ours["instances"]
        order = other["scores"].argsort(descending=True, stable=True)
        torch.testing.assert_close(instances.scores, other["scores"][order])
        ours_set, their_set = (
            {
                (round(float(s), 5), int(c), *(round(float(x), 2) for x in b))
                for s, c, b in zip(*rows, strict=True)
            }
            for rows in (
                (instances.scores, instances.pred_classes, instances.pred_boxes.tensor),
                (other["scores"], other["labels"], other["boxes"]),
            )
        )
        assert ours_set == their_set


def test_pixels_are_those_of_transformers_processor(tmp_path: Path) -> None:
    image = item(50, 70, [], [])
    for name, size in (
        ("RTDetrV2ForObjectDetection", 64),
        ("DeformableDetrForObjectDetection", (48, 80)),
        ("RfDetrForObjectDetection", 64),
    ):
        detector = TransformersDetector(tiny_config(name), image_size=size)
        detector.save_pretrained(tmp_path / name)
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / name)
        theirs = processor(images=image["image"], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(detector.preprocess([image])[0], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_losses_in_float32(
    detector: TransformersDetector, batch: list[dict[str, Any]], dtype: torch.dtype
) -> None:
    with torch.autocast("cpu", dtype=dtype):
        losses = detector(batch)
    assert all(bool(value.isfinite()) and value.dtype == torch.float32 for value in losses.values())


def test_a_saved_folder_loads_in_transformers_and_here(
    detector: TransformersDetector, batch: list[dict[str, Any]], tmp_path: Path
) -> None:
    detector.eval().save_pretrained(tmp_path)
    plain = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    again = TransformersDetector(tmp_path, image_size=detector.image_size).eval()
    assert again.class_names == tuple(LABELS.values()) == detector.class_names
    with torch.no_grad():
        pixels, padding, _ = detector.preprocess(batch)
        ours = detector._run(pixels, padding, None)
        masks = {"pixel_mask": (~padding).long()} if padding is not None else {}
        theirs = plain(pixel_values=pixels, **masks)
        found = again(batch)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.pred_boxes, theirs.pred_boxes)
    assert torch.equal(found[0]["instances"].scores, detector(batch)[0]["instances"].scores)


def test_class_logits_of_a_softmax_have_its_probabilities() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5, 30.0], [4.0, 3.0, -1.0, -5.0]], dtype=torch.float64)
    torch.testing.assert_close(class_logits(logits, True).sigmoid(), logits.softmax(-1)[:, :-1])
    assert class_logits(logits, False) is logits


def test_frozen_batch_norm_and_the_unused_two_stage_heads() -> None:
    detector = TransformersDetector(
        tiny_config("RTDetrV2ForObjectDetection"), freeze_batch_norm=True, image_size=64
    )
    before = [buffer.clone() for buffer in detector.detector.buffers()]
    detector.train()([item(64, 64, [[8.0, 8.0, 40.0, 50.0]], [1])])
    assert all(torch.equal(a, b) for a, b in zip(before, detector.detector.buffers(), strict=True))
    two_stage = tiny_config("DeformableDetrForObjectDetection", two_stage=True, with_box_refine=True,
                            two_stage_num_proposals=6)  # fmt: skip
    detector = TransformersDetector(two_stage).train()
    with TapRecorder(detector, {"neck": "neck", "head": "head"}) as recorder:
        losses = detector([item(64, 64, [[8.0, 8.0, 40.0, 50.0]], [1])] * 2)
    sum(losses.values()).backward()
    assert [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None] == []
    neck = recorder.values["neck"]
    assert isinstance(neck, Tensor) and neck.shape == (2, 6, 32)


def test_every_family_has_a_backbone_with_a_learning_rate_of_its_own(detector: TransformersDetector) -> None:
    groups = get_vidt_param_groups(detector, backbone_lr=1e-5)
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    found = {names[id(p)] for group in groups if group.get("lr") == 1e-5 for p in group["params"]}
    part = {"deimv2": "model.conv_encoder.model.", "yolos": "vit."}.get(
        detector.detector.config.model_type, "model.backbone."
    )
    expected = {
        n for n, p in detector.named_parameters() if n.startswith(f"detector.{part}") and p.requires_grad
    }
    # transformers freezes the whole ResNet of DETR's relatives, whose stages it looks for by names of timm.
    assert found == expected and (expected or detector.family.style in ("detr", "deformable"))


# --- sources -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rt_detr_v2")
    built("RTDetrV2ForObjectDetection").save_pretrained(path)
    return path


def test_other_classes_need_the_switch_and_are_reported(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match=r"3, not 5.*on_class_mismatch='reinit'"):
        TransformersDetector(folder, num_classes=5)
    with pytest.raises(ConfigError, match="class 1 is 'dog', not 'cow'"):
        TransformersDetector(folder, class_names=["cat", "cow", "bird"])
    with caplog.at_level("WARNING", "mokd_det"):
        evaluated, other = (
            TransformersDetector(folder, class_names=list("abcde"), on_class_mismatch="reinit")
            for _ in range(2)
        )
        evaluated.load_state_dict(other.state_dict())  # as a checkpoint of these classes
        evaluated.train()([item(64, 64, [], [])])
        assert "re-initialised" not in caplog.text
        other.train()([item(64, 64, [], [])])
    assert (
        other.num_classes == 5
        and "re-initialised model.decoder.class_embed.0.weight: [3, 16] in the file, [5, 16]" in caplog.text
    )
    assert "denoising_class_embed" in caplog.text and "enc_score_head" in caplog.text
    torch.testing.assert_close(
        other.detector.model.enc_bbox_head.layers[0].weight,
        built("RTDetrV2ForObjectDetection").detector.model.enc_bbox_head.layers[0].weight,
    )
    renamed = TransformersDetector(folder, class_names=["cat", "cow", "bird"], on_class_mismatch="reinit")
    assert not torch.equal(renamed.detector.class_embed[0].weight, other.detector.class_embed[0].weight[:3])


def _changed(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    for name, change in changes.items():
        file = target / f"{name}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    return target


def test_bad_sources_are_one_line_each(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty := tmp_path / "empty").mkdir()
    no_weights = _changed(folder, tmp_path / "no_weights")
    (no_weights / "model.safetensors").unlink()
    classifier = _changed(
        folder,
        tmp_path / "classifier",
        config={"model_type": "vit", "architectures": ["ViTForImageClassification"]},
    )
    other_processor = _changed(
        folder, tmp_path / "processor", preprocessor_config={"image_processor_type": "ViTImageProcessor"}
    )
    odd_size = _changed(folder, tmp_path / "odd", preprocessor_config={"size": {"height": 650, "width": 650}})
    wide = _changed(folder, tmp_path / "wide", config={"decoder_ffn_dim": 24})
    cases: list[tuple[dict[str, Any], type[MoKDError], str]] = [
        ({"source": tmp_path / "none"}, ConfigError, "is no folder.*allow_download"),
        ({"source": "someone/model", "allow_download": True}, ConfigError, "HF_HUB_OFFLINE"),
        ({"source": empty}, ConfigError, "no config.json"),
        ({"source": no_weights}, CheckpointError, "no weights"),
        ({"source": classifier}, ConfigError, "ViTForImageClassification, which is no object detector"),
        ({"source": other_processor}, ConfigError, "contradicts config.json.*ViTImageProcessor"),
        ({"source": odd_size}, ConfigError, "650×650.*multiples of 32, such as 640"),
        ({"source": wide}, CheckpointError, r"\[16\] in its weights, \[24\] by its config.json"),
        ({"source": folder, "image_size": [100, 64]}, ConfigError, "multiples of 32"),
        ({"source": tiny_config("DFineForObjectDetection", num_queries=22), "image_size": 32}, ConfigError, "21 cells"),
        ({"source": {"num_queries": 3}}, ConfigError, "no model_type"),
        ({"source": {"model_type": "vit"}}, ConfigError, "vit is no object detector"),
        ({"source": {**tiny_config("DetrForObjectDetection"), "decoder_layerdrop": 0.1}}, ConfigError, "layerdrop 0.1"),
    ]  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            TransformersDetector(**arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"knows no padding.*56 × 64, 64 × 48"):
        TransformersDetector(tiny_config("YolosForObjectDetection"), image_size=None)(
            [item(64, 48, [], []), item(56, 64, [], [])]
        )
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.57.1")
    with pytest.raises(ConfigError, match=r"4\.57\.1 is too old: 5\.19 or later.*denoising"):
        TransformersDetector(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'mokd_det\[transformers\]'"):
        TransformersDetector(folder)
