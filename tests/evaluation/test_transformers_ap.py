"""AP of Hugging Face detectors by this package and by transformers and pycocotools alone, on the same image files."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mokd_det.data import DetrDatasetMapper, build_test_loader, register_coco_format
from mokd_det.evaluation import CocoDetectionEvaluator
from mokd_det.modeling import TransformersDetector
from tests.config_room.test_own_data import catalogs  # noqa: F401
from tests.modeling.tiny_transformers import LABELS, TINY, tiny_config

transformers = pytest.importorskip("transformers")

IDS = {0: 17, 1: 3, 2: 90}
"""Class → category id of the file: neither in order nor close."""

SIZES = [(80, 120), (64, 64), (100, 60), (48, 90), (96, 96), (70, 50)]


def results_of_transformers(folder: Path, files: list[Path]) -> list[dict[str, Any]]:
    """COCO results by transformers alone: its model, its processor, its post-processing."""
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    results = []
    for number, file in enumerate(files):
        image = Image.open(file).convert("RGB")
        with torch.no_grad():
            output = model(**processor(images=image, return_tensors="pt"))
        (found,) = processor.post_process_object_detection(output, 0.0, [image.size[::-1]])
        for score, label, box in zip(found["scores"], found["labels"], found["boxes"], strict=True):
            x0, y0, x1, y1 = box.double().tolist()
            results.append({"image_id": number, "category_id": IDS[int(label)], "score": float(score),
                            "bbox": [x0, y0, x1 - x0, y1 - y0]})  # fmt: skip
    return results


def annotations_near(results: list[dict[str, Any]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Truth that a random model has half found: some of its boxes, moved, one in five of another class."""
    chosen = []
    for result in results:
        height, width = SIZES[result["image_id"]]
        x, y, w, h = np.array(result["bbox"]) + rng.normal(0, 0.04, 4) * np.tile(result["bbox"][2:], 2)
        x0, y0, x1, y1 = max(0.0, x), max(0.0, y), min(width, x + w), min(height, y + h)
        if x1 - x0 < 2 or y1 - y0 < 2 or rng.random() < 0.6:
            continue
        category = result["category_id"] if rng.random() < 0.8 else int(rng.choice(list(IDS.values())))
        box = [x0, y0, x1 - x0, y1 - y0]
        chosen.append({"id": len(chosen) + 1, "image_id": result["image_id"], "category_id": category, "bbox": box,
                       "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    return chosen


@pytest.mark.parametrize("name", sorted(TINY))
def test_ap_is_that_of_transformers_and_pycocotools(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    side = 128 if name.startswith("Deformable") else 64
    detector = TransformersDetector(tiny_config(name), image_size=side)
    with torch.no_grad():  # boxes and scores of fresh models hardly differ from query to query
        for key, value in detector.detector.named_parameters():
            heads = ("class_embed", "bbox_embed", "_score_head", "predictor", "classifier")
            spread = (0.05 if "Dab" in name else 0.3) if any(head in key for head in heads) else 0.0
            if detector.family.style == "detr":  # queries that are constants
                spread = 1.0 if "query" in key else max(spread, 0.05)
            value.add_(torch.randn_like(value) * spread)
    detector.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(len(SIZES))]
    for file, (height, width) in zip(files, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file)
    theirs = results_of_transformers(tmp_path / "model", files)
    truth = {
        "images": [{"id": i, "file_name": f.name, "height": h, "width": w}
                   for i, (f, (h, w)) in enumerate(zip(files, SIZES, strict=True))],
        "categories": [{"id": IDS[index], "name": label} for index, label in LABELS.items()],
        "annotations": annotations_near(theirs, rng),
    }  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(theirs), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    expected = 100 * evaluation.stats[:3]
    assert 1 < expected[0] < 95, "a test of nothing"

    register_coco_format(f"{name}_images", tmp_path / "truth.json", tmp_path)
    # The file's contiguous order is that of its ids; the model's classes are matched to it by name.
    order = sorted(IDS, key=IDS.__getitem__)
    ours = TransformersDetector(tmp_path / "model").eval()
    evaluator = CocoDetectionEvaluator(f"{name}_images", backend="pycocotools")
    mapper = DetrDatasetMapper(is_train=False, augmentation=[T.NoOpTransform()])
    for batch in build_test_loader(f"{name}_images", mapper, batch_size=4):
        with torch.no_grad():
            outputs = ours(batch)
        for output in outputs:
            classes = output["instances"].pred_classes
            output["instances"].pred_classes = torch.tensor([order.index(int(c)) for c in classes])
        evaluator.process(batch, outputs)
    found = evaluator.evaluate()["bbox"]
    # Batches round otherwise than single images; two scores that differ by as little may change places.
    np.testing.assert_allclose([found["AP"], found["AP50"], found["AP75"]], expected, rtol=0, atol=0.02)
