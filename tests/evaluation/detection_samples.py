"""Made-up data sets and detections, as COCO's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 400


def write_truth(
    path: Path, annotations: list[dict[str, Any]], *, images: list[int], classes: dict[int, str]
) -> Path:
    """A file in COCO's detection format, without masks."""
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in images],
        "categories": [{"id": id_, "name": name} for id_, name in classes.items()],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, start=1)],
    }
    path.write_text(json.dumps(content))
    return path


def write_results(path: Path, detections: list[dict[str, Any]]) -> Path:
    """A file in COCO's result format."""
    path.write_text(json.dumps(detections))
    return path


def crowded(tmp_path: Path, objects: int = 150) -> tuple[Path, Path]:
    """Two images with many small objects of three classes, and the truth as a detector's output."""
    annotations = [
        {
            "image_id": image,
            "category_id": 1 + k % 3,
            "bbox": [5 + 24 * (k % 15), 5 + 24 * (k // 15), 16, 16],
            "iscrowd": 0,
        }
        for image in (1, 2)
        for k in range(objects)
    ]
    truth = write_truth(
        tmp_path / "crowded.json", annotations, images=[1, 2], classes={1: "a", 2: "b", 3: "c"}
    )
    found = [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 1 - i / 1000}
        for i, a in enumerate(annotations)
    ]
    return truth, write_results(tmp_path / "perfect.json", found)


def noisy(tmp_path: Path, seed: int, *, images: int = 12, extra: int = 3) -> tuple[Path, Path]:
    """Random objects with crowds, and detections with every kind of error: moved, of another class, repeated,
    missing, and where nothing is. One class has no object, one image no annotation."""
    rng = np.random.default_rng(seed)
    annotations, found = [], []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(2, 8)) if image > 1 else 0):
            x, y = rng.uniform(0, 300, 2)
            width, height = rng.uniform(20, 90, 2)
            category = int(rng.choice([1, 5, 7]))
            crowd = int(rng.random() < 0.15)
            box = [float(v) for v in (x, y, width, height)]
            annotations.append({"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd})
            for _ in range(int(rng.integers(0, 4))):
                moved = np.array(box) + rng.normal(0, rng.choice([1, 8, 25]), 4)
                moved[2:] = np.maximum(moved[2:], 5)
                wrong = int(rng.choice([1, 5, 7, 8])) if rng.random() < 0.3 else category
                found.append(
                    {
                        "image_id": image,
                        "category_id": wrong,
                        "bbox": moved.tolist(),
                        "score": float(rng.random()),
                    }
                )
        for _ in range(extra):
            x, y = rng.uniform(0, 350, 2)
            found.append(
                {
                    "image_id": image,
                    "category_id": int(rng.choice([1, 5, 7])),
                    "bbox": [float(x), float(y), 30.0, 30.0],
                    "score": float(rng.random()) * 0.6,
                }
            )
    truth = write_truth(
        tmp_path / f"noisy{seed}.json",
        annotations,
        images=list(range(1, images + 1)),
        classes={1: "cat", 5: "dog", 7: "<b>cow</b>", 8: "never"},
    )
    return truth, write_results(tmp_path / f"noisy{seed}_found.json", found)
