#!/usr/bin/env python
"""Images per second and worker of the data loaders, and what the time of an image goes into.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --images 64 --rounds 3 --clock cpu --workers 2

Images: JPEG files of 640 x 480 as in COCO, smooth random colours with some noise, made in a temporary folder; seven
boxes each. First the parts, in one process: reading by each decoder, the detection augmentations for training and
evaluation, the copy into a tensor, whole mappers, classification at 224 pixels, and for comparison ways of resizing
that give other pixels than the one in use. Then, with --workers, the training loader as a training sees it.

A decoder's pixels are compared with PIL's. One worker on one core: N of them make N times as many images where the
machine has N cores for them.
"""

from __future__ import annotations

import io
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from harness import append_record, measure, options_of, parser_of, table
from PIL import Image
from timm.data import create_transform

from mokd_det.data import (
    DetrDatasetMapper,
    build_train_loader,
    detr_test_augmentation,
    detr_train_augmentation,
)
from mokd_det.data.image_file import DECODERS, read_image
from mokd_det.data.sampling import SampleKey, augmentation_rng

WIDTH, HEIGHT, LARGE = 640, 480, (1056, 800)
BOXES = 7


def make_images(folder: Path, count: int) -> list[dict[str, Any]]:
    """Write the files; returns Detectron2's records of them."""
    random = np.random.default_rng(0)
    records = []
    for index in range(count):
        small = random.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        noisy = smooth + random.normal(0, 6, (HEIGHT, WIDTH, 1))
        file = folder / f"{index}.jpg"
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
        corners = random.uniform(0, 300, (BOXES, 2))
        boxes = np.concatenate((corners, corners + random.uniform(20, 170, (BOXES, 2))), 1).tolist()
        annotations = [{"bbox": box, "bbox_mode": 0, "category_id": 0, "iscrowd": 0} for box in boxes]
        record = {"file_name": str(file), "image_id": index, "height": HEIGHT, "width": WIDTH}
        records.append({**record, "annotations": annotations})
    return records


def over_all(records: list[dict[str, Any]], work: Callable[[dict[str, Any]], object]) -> Callable[[], None]:
    """Do something with every record, each time with the same random numbers."""

    def call() -> None:
        for index, record in enumerate(records):
            with augmentation_rng(0, SampleKey(index, index)):
                work(record)

    return call


def resizings(image: np.ndarray) -> dict[str, Callable[[], object]]:
    """From 640 x 480 to 1056 x 800, the largest size of evaluation."""
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    in_use = T.ResizeTransform(HEIGHT, WIDTH, LARGE[1], LARGE[0])
    return {
        "resize, PIL bilinear (in use)": lambda: in_use.apply_image(image),
        "resize, OpenCV linear": lambda: cv2.resize(image, LARGE, interpolation=cv2.INTER_LINEAR),
        "resize, torch bilinear antialias": lambda: torch.nn.functional.interpolate(
            tensor, size=(LARGE[1], LARGE[0]), mode="bilinear", antialias=True
        ),
    }


def draft(content: bytes) -> np.ndarray:
    """Half the size by libjpeg itself, as an evaluation of 240 pixels could have it."""
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (WIDTH // 2, HEIGHT // 2))
    return np.asarray(image.convert("RGB"))


def parts(records: list[dict[str, Any]]) -> dict[str, Callable[[], object]]:
    """What is timed, each over all images."""
    images = [read_image(record["file_name"], "image") for record in records]
    contents = [Path(record["file_name"]).read_bytes() for record in records]
    large = np.asarray(Image.fromarray(images[0]).resize(LARGE, Image.Resampling.BILINEAR))
    calls: dict[str, Callable[[], object]] = {}

    def read(record: dict[str, Any], decoder: str = "pil") -> np.ndarray:
        return read_image(record["file_name"], "image", decoder)

    def augmented(listed: T.AugmentationList, record: dict[str, Any]) -> object:
        return listed(T.AugInput(images[record["image_id"]]))

    def transformed(transform: Callable[[Image.Image], object], record: dict[str, Any]) -> object:
        return transform(Image.fromarray(read(record)))

    def times_all(resize: Callable[[], object]) -> object:
        return [resize() for _ in records]

    for decoder in DECODERS:
        calls[f"read and decode, {decoder}"] = over_all(records, partial(read, decoder=decoder))
    calls["decode to a half by PIL's draft mode"] = lambda: [draft(content) for content in contents]
    for name, augmentation in (("train", detr_train_augmentation()), ("test", detr_test_augmentation())):
        calls[f"augment, {name}"] = over_all(records, partial(augmented, T.AugmentationList(augmentation)))
    calls["to a tensor (1056 x 800)"] = lambda: [
        torch.from_numpy(np.ascontiguousarray(large.transpose(2, 0, 1))) for _ in records
    ]
    for decoder in DECODERS:
        calls[f"detection, train, {decoder}"] = over_all(records, DetrDatasetMapper(True, decoder=decoder))
    calls["detection, test, pil"] = over_all(records, DetrDatasetMapper(False))
    for name, training in (("train", True), ("test", False)):
        transform = create_transform(224, is_training=training, auto_augment=None)
        calls[f"classification 224, {name}"] = over_all(records, partial(transformed, transform))
    for name, resize in resizings(images[0]).items():
        calls[name] = partial(times_all, resize)
    return calls


def pixel_differences(records: list[dict[str, Any]]) -> dict[str, int]:
    """Largest difference of a pixel to PIL's."""
    found = {}
    for decoder in DECODERS:
        pairs = (
            (read_image(record["file_name"], "image", decoder), read_image(record["file_name"], "image"))
            for record in records
        )
        found[decoder] = max(int(np.abs(one.astype(int) - two.astype(int)).max()) for one, two in pairs)
    return found


def loader_speed(records: list[dict[str, Any]], workers: int, decoder: str, batches: int) -> float:
    """Images per second of the training loader by the clock, after the workers have started."""
    loader = build_train_loader(records, DetrDatasetMapper(True, decoder=decoder), 4, num_workers=workers)
    stream = iter(loader)
    for _ in range(2 * max(workers, 1)):
        next(stream)
    began = time.perf_counter()
    count = sum(len(batch) for batch in itertools.islice(stream, batches))
    return count / (time.perf_counter() - began)


def main() -> None:
    parser = parser_of(__doc__, rounds=3, warmup=1)
    add = parser.add_argument
    add("--images", type=int, default=200, metavar="N", help="JPEG files (%(default)s)")
    add("--workers", type=int, nargs="*", default=[], metavar="N", help="also time loaders")
    add("--batches", type=int, default=20, metavar="N", help="of 4 images (%(default)s)")
    options = options_of(parser)
    cv2.setNumThreads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        records = make_images(Path(folder), options.images)
        differences = pixel_differences(records)
        measured = measure(parts(records), options, progress=False)
        loaders = {
            f"{workers} workers, {decoder}": loader_speed(records, workers, decoder, options.batches)
            for workers in options.workers
            for decoder in DECODERS
        }
    milliseconds = {name: 1e3 * measured.seconds(name).median / options.images for name in measured.names}
    measured.report(
        "data_loading",
        settings={"images": options.images, "size": f"{WIDTH} x {HEIGHT}", "pixels off PIL's": differences},
        json_file=None,
        columns={
            "ms / image": {name: f"{value:.2f}" for name, value in milliseconds.items()},
            "images / s": {name: f"{1e3 / value:.0f}" for name, value in milliseconds.items()},
        },
    )
    if loaders:
        print(
            "\n" + table([{"loader": name, "images / s": f"{speed:.1f}"} for name, speed in loaders.items()])
        )
    append_record(
        options.json,
        "data_loading",
        {"images": options.images, "width": WIDTH, "height": HEIGHT},
        {**measured.figures(), "pixel differences": differences, "loaders": loaders},
    )


if __name__ == "__main__":
    main()
