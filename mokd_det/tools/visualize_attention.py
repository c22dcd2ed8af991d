"""Draw where models look: the DET tokens of detectors, the class token of classifiers, several models side by side.

The command line: :mod:`mokd_det.tools.parsers.visualize_attention`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from matplotlib.figure import Figure
from PIL import Image

from mokd_det.classification import ImageClassifier
from mokd_det.classification.dataset import ImageDataset
from mokd_det.data import load_dataset_dicts
from mokd_det.data.class_table import ClassTable
from mokd_det.data.image_file import read_image, read_image_of
from mokd_det.data.input_files import find_input_files
from mokd_det.engine.inference_model import InferenceModel, load_inference_model
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.folder_lock import locked_folder
from mokd_det.modeling import TransformersDetector
from mokd_det.progress import progress
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import visualize_attention as reader
from mokd_det.tools.parsers.model_arguments import ModelFiles, model_files
from mokd_det.visualization import save_png
from mokd_det.visualization.attention_classifier import record_classifier_attention
from mokd_det.visualization.attention_detector import DetectorAttention, record_detector_attention
from mokd_det.visualization.attention_figure import (
    ClassMaps,
    class_attention_figure,
    layer_attention_figure,
    object_attention_figure,
)
from mokd_det.visualization.attention_transformers import record_transformers_attention

SHEET_ROWS = 8


@dataclass(frozen=True)
class Picture:
    """An image to look at.

    Attributes:
        name: of what is drawn of it, without suffix.
        title: for people.
        record: what a detector's mapper takes, without the size where the file must tell it.
        load: reads a classifier's image.
    """

    name: str
    title: str
    record: dict[str, Any]
    load: Callable[[], Image.Image]


def run(options: argparse.Namespace) -> int:
    """Load the models and draw; returns the exit status."""
    files = model_files(options, several=True)
    pictures = [] if options.ids else named_pictures(options.inputs)
    models = [load_inference_model(file.config, file.weights, options.overrides) for file in files]
    classify = [isinstance(model.model, ImageClassifier) for model in models]
    if any(classify) and not all(classify):
        raise ConfigError("detectors and classifiers cannot be drawn side by side; give one kind")
    draw = draw_classifiers if classify[0] else draw_detectors
    with writing(options.output), locked_folder(options.output, "--output"):
        unread = draw(options, files, models, pictures)
    for message in unread:
        print(f"not drawn: {message}", file=sys.stderr)
    return 1 if unread else 0


def named_pictures(inputs: Sequence[str]) -> list[Picture]:
    """The images of files and folders."""

    def picture(path: Path, name: str, number: int) -> Picture:
        record = {"file_name": str(path), "image_id": number}
        return Picture(name, path.name, record, partial(read_file, path))

    return [
        picture(file.path, file.output_name, i) for i, file in enumerate(find_input_files(inputs), start=1)
    ]


def read_file(path: Path) -> Image.Image:
    """An image file, RGB."""
    return Image.fromarray(read_image(str(path), f"image {path}"))


def read_record(record: dict[str, Any]) -> Image.Image:
    """The image of a record, RGB."""
    return Image.fromarray(read_image_of(record))


# --- detectors -------------------------------------------------------------------------------------------------


def draw_detectors(
    options: argparse.Namespace,
    files: Sequence[ModelFiles],
    models: Sequence[InferenceModel],
    pictures: Sequence[Picture],
) -> list[str]:
    """Write one picture per image; returns what could not be read."""
    mappers = [model.build_mapper() for model in models]
    tables = [model.class_table(options.annotations) for model in models]
    for file, table in zip(files, tables, strict=True):
        if table.names != tables[0].names:
            raise ConfigError(
                f"{files[0].name} and {file.name} have different classes ({tables[0].source}, {table.source}); only "
                f"detectors of the same classes can be compared"
            )
    if options.ids:
        pictures = dataset_pictures(options, models[0])
    figure_of = object_attention_figure if options.view == "objects" else layer_attention_figure
    most = options.max_objects or (8 if options.view == "objects" else 3)
    unread = []
    for picture in progress(pictures):
        try:
            image = read_image_of(picture.record)
        except DatasetError as error:
            unread.append(str(error))
            continue
        record = {**picture.record, "height": image.shape[0], "width": image.shape[1]}
        found = [
            (file.name, contiguous(attend(model, mapper, record), table, model.predicts_dataset_ids))
            for file, model, mapper, table in zip(files, models, mappers, tables, strict=True)
        ]
        figure = figure_of(
            image,
            found,
            tables[0].names,
            threshold=options.threshold,
            max_objects=most,
            smooth=options.smooth,
            title=picture.title,
        )
        write(figure, options.output / f"{picture.name}.png")
    return unread


def attend(model: InferenceModel, mapper: Callable, record: dict[str, Any]) -> DetectorAttention:
    """The attention of one detector in one image."""
    hugging_face = isinstance(model.model, TransformersDetector)
    find = record_transformers_attention if hugging_face else record_detector_attention
    return find(model.model, [mapper(record)])[0]


def contiguous(found: DetectorAttention, table: ClassTable, by_id: bool) -> DetectorAttention:
    """The same with contiguous classes; a token of a spare row of the class head is none to be confident of."""
    indices = [table.index(int(label), by_id=by_id) for label in found.classes]
    spare = np.array([index is None for index in indices])
    return replace(
        found,
        classes=np.array([index or 0 for index in indices]),
        scores=np.where(spare, 0.0, found.scores),
    )


def dataset_pictures(options: argparse.Namespace, model: InferenceModel) -> list[Picture]:
    """The images that --ids names."""
    name = options.dataset or model.dataset
    if name is None:
        raise ConfigError("--ids needs --dataset NAME: the first model's configuration names no data set")
    records = {record["image_id"]: record for record in load_dataset_dicts(name)}
    pictures = []
    for id_ in dict.fromkeys(options.ids):
        if id_ not in records:
            raise DatasetError(
                f"--ids: data set {name!r} has no image id {id_}; it has {len(records)} images, "
                f"ids {min(records)} to {max(records)}"
            )
        record = {key: value for key, value in records[id_].items() if key != "annotations"}
        pictures.append(
            Picture(f"{name}_{id_}", f"{name}, image {id_}", record, partial(read_record, record))
        )
    return pictures


# --- classifiers -----------------------------------------------------------------------------------------------


def draw_classifiers(
    options: argparse.Namespace,
    files: Sequence[ModelFiles],
    models: Sequence[InferenceModel],
    pictures: Sequence[Picture],
) -> list[str]:
    """Write sheets of images, or one picture per image; returns what could not be read."""
    data = test_dataset(models[0])
    if options.ids:
        pictures = positions(options.ids, data)
    names = data.class_names if data is not None else ()
    transforms = [model.build_transform() for model in models]
    unread: list[str] = []
    rows: list[tuple[Picture, list[Seen]]] = []
    for picture in progress(pictures):
        try:
            image = picture.load().convert("RGB")
        except DatasetError as error:
            unread.append(str(error))
            continue
        seen = [
            look(model, transform, image, names) for model, transform in zip(models, transforms, strict=True)
        ]
        rows.append((picture, seen))
    labels = [file.name for file in files]
    if options.view == "layers":
        for picture, seen in rows:
            write(layer_sheet(picture, seen, labels, options.smooth), options.output / f"{picture.name}.png")
        return unread
    for number, start in enumerate(range(0, len(rows), SHEET_ROWS), start=1):
        part = rows[start : start + SHEET_ROWS]
        name = "class_attention.png" if len(rows) <= SHEET_ROWS else f"class_attention_{number}.png"
        write(overview_sheet(part, labels, options.smooth), options.output / name)
    return unread


@dataclass(frozen=True)
class Seen:
    """What one classifier sees in one image.

    Attributes:
        image: its part of the image, uint8 (H, W, 3).
        caption: its prediction.
        blocks: the class token's attention per block, (h, w) each.
        rollout: (h, w).
    """

    image: np.ndarray
    caption: str
    blocks: list[np.ndarray]
    rollout: np.ndarray


def look(model: InferenceModel, transform: Callable, image: Image.Image, names: Sequence[str]) -> Seen:
    """Run a classifier on one image."""
    tensor = transform(image)
    found = record_classifier_attention(model.model.network, lambda: model.model(tensor[None]))
    probability, label = found.output[0].float().softmax(-1).max(-1)
    name = names[int(label)] if int(label) < len(names) else f"class {int(label)}"
    return Seen(
        visible_part(transform, image, tensor),
        f"{name} {float(probability):.2f}",
        [found.class_token(i)[0].numpy() for i in range(len(found.blocks))],
        found.rollout()[0].numpy(),
    )


def visible_part(transform: Callable, image: Image.Image, tensor: torch.Tensor) -> np.ndarray:
    """The transformed image with its normalisation undone: what the transform makes of black and white tells it."""
    black, white = (transform(Image.new("RGB", image.size, colour)) for colour in ("black", "white"))
    plain = (tensor - black) / (white - black)
    return (plain.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def overview_sheet(
    rows: Sequence[tuple[Picture, list[Seen]]], labels: Sequence[str], smooth: bool | None
) -> Figure:
    """Final block and rollout of every classifier, one row per image."""
    classifiers = [
        (label, [ClassMaps(seen[i].caption, (seen[i].blocks[-1], seen[i].rollout)) for _, seen in rows])
        for i, label in enumerate(labels)
    ]
    return class_attention_figure(
        [seen[0].image for _, seen in rows],
        classifiers,
        ("final block", "rollout"),
        row_names=[picture.title for picture, _ in rows],
        smooth=smooth,
        title="Attention of the class token",
    )


def layer_sheet(picture: Picture, seen: Sequence[Seen], labels: Sequence[str], smooth: bool | None) -> Figure:
    """Every block of every classifier, one row per classifier."""
    deepest = max(len(view.blocks) for view in seen)
    maps = [ClassMaps(view.caption, [*view.blocks, *[None] * (deepest - len(view.blocks))]) for view in seen]
    return class_attention_figure(
        [view.image for view in seen],
        [("attention of the class token", maps)],
        [f"block {i + 1}" for i in range(deepest)],
        row_names=labels,
        smooth=smooth,
        title=picture.title,
    )


def test_dataset(model: InferenceModel) -> ImageDataset | None:
    """The data set that a classifier's configuration evaluates on."""
    section = (model.cfg.dataloader.get("test") or {}).get("dataset")
    found = instantiate(section) if section is not None else None
    return found if isinstance(found, ImageDataset) else None


def positions(ids: Sequence[int], data: ImageDataset | None) -> list[Picture]:
    """The images at these positions of a classification data set."""
    if data is None:
        raise ConfigError("--ids needs a data set in dataloader.test of the first model's configuration")
    pictures = []
    for id_ in dict.fromkeys(ids):
        if not 0 <= id_ < len(data):
            raise DatasetError(
                f"--ids: {data.name} has no image at position {id_}; it has {len(data)} images"
            )
        truth = data.class_names[data.labels[id_]]
        pictures.append(Picture(f"image_{id_}", f"{id_}: {truth}", {}, partial(data.read, id_)))
    return pictures


def write(figure: Figure, path: Path) -> None:
    """Save a picture and say so."""
    save_png(figure, path)
    print(path)


main = command(reader, run)
