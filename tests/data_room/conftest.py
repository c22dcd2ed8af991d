"""A tiny COCO-format data set on disk, whose content a test may damage."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mokd_det.data import CocoFormatSource, load_coco_format

# (width, height) per image id; category ids leave gaps and are not sorted; image 30 has no boxes
SIZES = {20: (40, 30), 10: (32, 48), 30: (24, 24)}
CONTENT: dict[str, Any] = {
    "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
    "images": [
        {"id": id_, "file_name": f"im{id_}.png", "width": w, "height": h} for id_, (w, h) in SIZES.items()
    ],
    "annotations": [
        {"id": 1, "image_id": 20, "category_id": 7, "bbox": [5, 6, 10, 8], "iscrowd": 0},
        {"id": 2, "image_id": 10, "category_id": 3, "bbox": [0, 0, 32, 48], "iscrowd": 0},
        {"id": 3, "image_id": 20, "category_id": 3, "bbox": [20.5, 10.25, 12.5, 15], "iscrowd": 0},
        {"id": 4, "image_id": 20, "category_id": 7, "bbox": [0, 0, 20, 20], "iscrowd": 1},
    ],
}


@dataclass
class CocoFiles:
    """Paths of a data set on disk."""

    json_file: Path
    image_root: Path

    def source(self, **options: Any) -> CocoFormatSource:
        return CocoFormatSource(None, str(self.json_file), str(self.image_root), **options)

    def load(self, **options: Any) -> list[dict[str, Any]]:
        return load_coco_format(self.source(**options))


@pytest.fixture
def coco_files(tmp_path: Path) -> Callable[..., CocoFiles]:
    """Writes images and annotations; ``damage`` changes the content before it is written."""

    def write(damage: Callable[[dict[str, Any]], Any] = lambda content: None) -> CocoFiles:
        content = copy.deepcopy(CONTENT)
        files = CocoFiles(tmp_path / "annotations.json", tmp_path / "images")
        files.image_root.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for image in content["images"]:
            pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(files.image_root / image["file_name"])
        damage(content)
        files.json_file.write_text(json.dumps(content))
        return files

    return write


@pytest.fixture(autouse=True)
def clean_catalogs() -> Iterator[None]:
    """Take back what a test registers."""
    before = [dict(catalog.data) for catalog in (DatasetCatalog, MetadataCatalog)]
    metadata = {name: dict(value.__dict__) for name, value in MetadataCatalog.data.items()}
    yield
    for catalog, known in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        catalog.data.clear()
        catalog.data.update(known)
    for name, value in metadata.items():
        MetadataCatalog.data[name].__dict__.clear()
        MetadataCatalog.data[name].__dict__.update(value)
