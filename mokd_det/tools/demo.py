"""Find objects in images, folders, videos or a camera's pictures: drawn, and as JSON.

The command line: :mod:`mokd_det.tools.parsers.demo`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.data.coco_columns import read_sections
from mokd_det.data.coco_source import CocoFormatSource
from mokd_det.data.frames import FrameSource, VideoWriter, open_camera, open_video
from mokd_det.data.image_file import read_image
from mokd_det.data.input_files import InputFile, find_input_files
from mokd_det.engine.inference_model import InferenceModel, load_inference_model
from mokd_det.errors import ConfigError, DatasetError
from mokd_det.evaluation.detection_file import ResultWriter, result_file
from mokd_det.folder_lock import locked_folder
from mokd_det.progress import progress
from mokd_det.tools import command, writing
from mokd_det.tools.parsers import demo as reader
from mokd_det.tools.parsers.model_arguments import model_files
from mokd_det.visualization.detection_drawing import DetectionDrawer


def run(options: argparse.Namespace) -> int:
    """Load the model and look at everything; returns the exit status."""
    (files,) = model_files(options, several=False)
    inputs = find_input_files(options.inputs, kinds=("image", "video")) if options.inputs else []
    camera = open_camera(options.camera) if options.camera is not None else None
    detector = Detector(load_inference_model(files.config, files.weights, options.overrides), options)
    with writing(options.output), locked_folder(options.output, "--output"):
        unread = look(inputs, camera, detector, options)
    for message in unread:
        print(f"not read: {message}", file=sys.stderr)
    return 1 if unread else 0


class Detector:
    """A model that says what is in a picture, in terms of its data set's classes."""

    def __init__(self, loaded: InferenceModel, options: argparse.Namespace) -> None:
        self._loaded = loaded
        self._mapper = loaded.build_mapper()
        self._threshold = options.threshold
        self.table = loaded.class_table(options.annotations)

    @torch.no_grad()
    def __call__(self, record: dict[str, Any]) -> Instances:
        """Confident detections on the CPU, best first, with contiguous classes."""
        output = self._loaded.model([self._mapper(record)])[0]
        if "instances" not in output:
            raise ConfigError(
                f"{type(self._loaded.model).__name__} is no detector: it returned {sorted(output)}"
            )
        found = output["instances"].to("cpu")
        found = found[found.scores >= self._threshold]
        found = found[found.scores.argsort(descending=True, stable=True)]
        indices = [
            self.table.index(label, by_id=self._loaded.predicts_dataset_ids)
            for label in found.pred_classes.tolist()
        ]
        known = torch.tensor([index is not None for index in indices], dtype=torch.bool)
        found = found[known]
        found.pred_classes = torch.tensor([i for i in indices if i is not None], dtype=torch.int64)
        return found


@dataclass
class Session:
    """What is being looked at, and where the results go."""

    detector: Detector
    drawer: DetectionDrawer | None
    results: ResultWriter
    ids: ImageIds
    options: argparse.Namespace
    images: list[dict[str, Any]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def look_at(
        self, image: np.ndarray, file_name: str, note: dict[str, Any], image_id: int
    ) -> np.ndarray | None:
        """Detect, write down, draw.

        Args:
            image: uint8 (H, W, 3) RGB.
            file_name: where the model's mapper can read it.
            note: of images.json.
            image_id: of the results.
        """
        height, width = image.shape[:2]
        record = {"file_name": file_name, "image_id": image_id, "height": height, "width": width}
        found = self.detector(record)
        for box, label, score in zip(
            found.pred_boxes.tensor.double().tolist(),
            found.pred_classes.tolist(),
            found.scores.double().tolist(),
        ):
            self.results.add(image_id, self.detector.table.category_ids[label], box, score)
        self.images.append(
            {"id": image_id, **note, "width": width, "height": height, "detections": len(found)}
        )
        return None if self.drawer is None else self.drawer.draw(image, found)


class ImageIds:
    """Image ids: those of an annotation file where it lists the image, new ones above all of them elsewhere."""

    def __init__(self, json_file: str | None) -> None:
        rows = [] if json_file is None else read_sections(CocoFormatSource(None, json_file, None))["images"]
        self._known = {
            str(row["file_name"]): int(row["id"]) for row in rows if {"file_name", "id"} <= set(row)
        }
        self._last = max(self._known.values(), default=0)

    def of(self, path: Path) -> int:
        """For an image file: of the listed name that is the longest end of its path."""
        parts = path.resolve().parts[1:]
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            if name in self._known:
                return self._known[name]
        return self.new()

    def new(self) -> int:
        """An id that nothing else has."""
        self._last += 1
        return self._last


def look(
    inputs: Sequence[InputFile], camera: FrameSource | None, detector: Detector, options: argparse.Namespace
) -> list[str]:
    """Look at everything and write all files; returns what could not be read."""
    table = detector.table
    drawer = None if options.no_drawing else DetectionDrawer(table.names, options.scale)
    with result_file(options.output / "detections.json") as results:
        session = Session(detector, drawer, results, ImageIds(options.annotations), options)
        try:
            if camera is not None:
                look_at_frames(camera, "camera", session)
            videos = any(file.kind == "video" for file in inputs)
            for file in progress(inputs, what="files" if videos else "images"):
                look_at_file(file, session)
        except KeyboardInterrupt:
            # What was found is as good as ever; a camera has no other end.
            print("stopped; what was looked at until now is written", file=sys.stderr)
            if camera is None:
                session.unread.append("everything after the interruption")
        note = {
            "images": session.images,
            "categories": [
                {"id": id_, "name": name} for id_, name in zip(table.category_ids, table.names, strict=True)
            ],
            "threshold": options.threshold,
            "unread": session.unread,
        }
        with atomic_write(options.output / "images.json", "w") as handle:
            json.dump(note, handle, indent=1, ensure_ascii=True)
            handle.write("\n")
    images, found = len(session.images), results.count
    print(f"{found} detection{'s' * (found != 1)} in {images} image{'s' * (images != 1)}: {options.output}")
    return session.unread


def look_at_file(file: InputFile, session: Session) -> None:
    """Look at one image or video."""
    try:
        if file.kind == "video":
            look_at_frames(open_video(file.path), file.output_name, session)
            return
        image = read_image(str(file.path), f"image {file.path}")
    except DatasetError as error:
        session.unread.append(str(error))
        return
    drawn = session.look_at(image, str(file.path), {"file_name": str(file.path)}, session.ids.of(file.path))
    if drawn is not None:
        with atomic_write(session.options.output / f"{file.output_name}.png") as handle:
            Image.fromarray(drawn).save(handle, format="PNG")


def look_at_frames(source: FrameSource, name: str, session: Session) -> None:
    """Look at a video or a camera, frame by frame.

    Raises:
        DatasetError: not one frame could be decoded.
    """
    limit = session.options.max_frames
    wanted = source.announced if limit is None else min(limit, source.announced or limit)
    number = 0
    target = session.options.output / f"{name}.{session.options.video}"
    with (
        tempfile.TemporaryDirectory() as folder,
        VideoWriter(target, source.rate, live=source.live) as writer,
    ):
        for frame in progress(islice(source.frames(), limit), wanted, f"frames of {source.name}"):
            # Through a file, so that any mapper of a configuration reads it as it reads images.
            path = str(Path(folder) / "frame.bmp")
            cv2.imwrite(path, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            note = {"file_name": source.path, "frame": number}
            drawn = session.look_at(frame, path, note, session.ids.new())
            number += 1
            if drawn is not None:
                writer.write(drawn)
    if number == 0:
        raise DatasetError(f"{source.name} has no frame that can be decoded")
    if limit is None and source.announced is not None and number < source.announced:
        session.unread.append(
            f"{source.name}: {number} frames could be decoded, it announces {source.announced}"
        )


main = command(reader, run)
