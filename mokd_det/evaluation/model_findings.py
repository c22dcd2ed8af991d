"""What a run's trained model does on images: its errors, a few of its predictions, where it looks, its speed."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from mokd_det.classification import ImageClassifier
from mokd_det.classification.dataset import ImageDataset
from mokd_det.config import as_override
from mokd_det.data import load_dataset_dicts
from mokd_det.data.image_file import read_image_of
from mokd_det.data.truth import dataset_truth
from mokd_det.engine.inference_model import InferenceModel, load_inference_model
from mokd_det.errors import ConfigError, MoKDError
from mokd_det.evaluation.detection_file import Detections, read_detections
from mokd_det.evaluation.latency import Latency, measure_latency
from mokd_det.evaluation.tide import TideReport, run_tide
from mokd_det.progress import progress
from mokd_det.visualization.attention_detector import DetectorAttention, record_detector_attention
from mokd_det.visualization.predictions import BoxSet

__all__ = ["ClassifiedImage", "ModelFindings", "Sample", "examine"]

ATTENTION_PICTURES = 2
_WARM_UP, _REPEATS, _LONG_SECONDS = 3, 20, 0.5


@dataclass(frozen=True)
class Sample:
    """One image, uint8 (H, W, 3) RGB, by its file without folders, with its true boxes and all predictions of a
    detector, best first, and where its DET tokens look, if there are any and it was asked for."""

    file_name: str
    pixels: np.ndarray
    truth: BoxSet
    found: BoxSet
    attention: DetectorAttention | None = None


@dataclass(frozen=True)
class ClassifiedImage:
    """One image, uint8 (H, W, 3) RGB, its class, the one that a classifier found and that one's probability."""

    name: str
    pixels: np.ndarray
    truth: str
    found: str
    probability: float


@dataclass
class ModelFindings:
    """What is known of one model; what could not be found out is said in ``problems``.

    Attributes:
        latency: of one image at a time.
        images: how many were looked at, of how many there are.
        class_names: by contiguous index.
        samples: the first images of a detector.
        classified: the first images of a classifier.
        tide: what AP is lost to.
        problems: sentences.
    """

    parameters: int | None = None
    latency: Latency | None = None
    device: str = ""
    dataset: str = ""
    images: int = 0
    of_images: int = 0
    class_names: Sequence[str] = ()
    samples: list[Sample] = field(default_factory=list)
    classified: list[ClassifiedImage] = field(default_factory=list)
    tide: TideReport | None = None
    problems: list[str] = field(default_factory=list)


def examine(
    directory: Path,
    label: str,
    *,
    dataset: str | None = None,
    max_images: int = 500,
    pictures: int = 6,
    thresholds: Sequence[float] = (0.5, 0.75),
) -> ModelFindings:
    """Run the trained student of a run over the first images of its evaluation.

    A missing file or data set is no error but a problem that the findings name: a page about the rest can still be
    written.

    Args:
        directory: the run's, with ``student_final.pth`` and ``config.yaml``.
        label: the run's, in messages.
        dataset: registered name, for detectors; None: the configuration's.
        max_images: to look at, in the data set's order; the first ``pictures`` of them are kept.
        thresholds: of TIDE.
    """
    findings = ModelFindings()
    try:
        file, weights = directory / "config.yaml", directory / "student_final.pth"
        if not weights.is_file():
            raise ConfigError("the training is not finished (no student_final.pth), so its model was not run")
        if not file.is_file():
            raise ConfigError("there is no config.yaml to build the model from")
        cfg = OmegaConf.load(file)
        if OmegaConf.select(cfg, "dataloader.test", throw_on_resolution_failure=False) is None:
            raise ConfigError("the configuration has no dataloader.test, so there are no images to look at")
        images = OmegaConf.select(cfg, "dataloader.test.dataset", throw_on_resolution_failure=False)
        overrides = (
            [as_override("dataloader.test.dataset", dataset)] if dataset and isinstance(images, str) else []
        )
        model = load_inference_model(file, weights, overrides)
        findings.parameters = sum(parameter.numel() for parameter in model.model.parameters())
        device = next(model.model.parameters()).device
        findings.device = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        if isinstance(model.model, ImageClassifier):
            _look_at_classes(model, findings, pictures)
        else:
            _look_at_boxes(model, findings, label, max_images, pictures, thresholds)
    except MoKDError as error:
        findings.problems.append(str(error))
    return findings


# Detectors


def _look_at_boxes(
    model: InferenceModel,
    findings: ModelFindings,
    label: str,
    max_images: int,
    pictures: int,
    thresholds: Sequence[float],
) -> None:
    loader = instantiate(model.cfg.dataloader.test)
    findings.of_images = len(loader.dataset)
    node = model.cfg.dataloader.get("evaluator")
    name = None if node is None else node.get("dataset_name")
    findings.dataset = str(name or model.dataset or "")
    with tempfile.TemporaryDirectory() as directory:
        evaluator = None
        if isinstance(name, str):
            node.output_dir = directory
            # pycocotools prints what it does.
            with contextlib.redirect_stdout(io.StringIO()):
                evaluator = instantiate(node)
            evaluator.reset()
        seen = _run(model.model, loader, min(max_images, findings.of_images), evaluator, label, pictures)
        findings.images = len(seen.image_ids)
        if seen.first:
            findings.latency = _time(model.model, [seen.first[0]])
        if not seen.has_boxes:
            raise ConfigError("the model finds no boxes, so there are no errors and no pictures of them")
        if evaluator is None or not isinstance(name, str):
            raise ConfigError("the configuration evaluates no boxes, so their truth is not known")
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.evaluate(img_ids=seen.image_ids)
        detections = read_detections(Path(directory) / "coco_instances_results.json", label)
    metadata = MetadataCatalog.get(name)
    findings.class_names = list(metadata.thing_classes)
    truth = dataset_truth(name, warn=False).of_images(seen.image_ids)
    findings.tide = run_tide(truth, detections, thresholds=thresholds)
    records = {record["image_id"]: record for record in load_dataset_dicts(name)} if seen.first else {}
    classes = metadata.thing_dataset_id_to_contiguous_id
    for number, item in enumerate(seen.first):
        record = records[item["image_id"]]
        findings.samples.append(
            Sample(
                Path(record["file_name"]).name,
                read_image_of(record),
                BoxSet.from_annotations(record["annotations"]),
                _boxes_of(item["image_id"], detections, classes),
                _attention(model, item, classes) if number < ATTENTION_PICTURES else None,
            )
        )


@dataclass
class _Seen:
    """What was run: ids of the images, the first inputs, and whether the outputs have boxes."""

    image_ids: list[int] = field(default_factory=list)
    first: list[dict[str, Any]] = field(default_factory=list)
    has_boxes: bool = False


@torch.no_grad()
def _run(model: nn.Module, loader: Any, count: int, evaluator: Any, label: str, keep: int) -> _Seen:
    """Run the first images and hand what is found to the evaluator."""
    seen = _Seen()

    def images() -> Iterator[int]:
        for batch in loader:
            batch = batch[: count - len(seen.image_ids)]
            outputs = model(batch)
            seen.has_boxes = isinstance(outputs, list) and all("instances" in output for output in outputs)
            if evaluator is not None and seen.has_boxes:
                evaluator.process(batch, outputs)
            # All of them would not fit into memory.
            seen.first += batch[: max(keep, 1) - len(seen.first)]
            for sample in batch:
                seen.image_ids.append(sample["image_id"])
                yield len(seen.image_ids)
            if len(seen.image_ids) >= count:
                return

    for _ in progress(images(), count, f"{label}: images"):
        pass
    return seen


def _boxes_of(image_id: int, detections: Detections, class_of_id: Mapping[int, int]) -> BoxSet:
    """What was found in an image, best score first."""
    rows = np.flatnonzero(detections.image_ids == image_id)
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
    boxes = detections.boxes[rows].copy()
    boxes[:, 2:] += boxes[:, :2]
    classes = [class_of_id[id_] for id_ in detections.category_ids[rows].tolist()]
    return BoxSet(boxes, np.array(classes, dtype=np.int64), detections.scores[rows])


def _attention(
    model: InferenceModel, item: dict[str, Any], class_of_id: Mapping[int, int]
) -> DetectorAttention | None:
    """Where the DET tokens look; None for a detector without such."""
    try:
        (found,) = record_detector_attention(model.model, [item])
    except ConfigError:
        return None
    if not model.predicts_dataset_ids:
        return found
    # A token of a spare row of the class head is none to be confident of.
    known = np.array([int(label) in class_of_id for label in found.classes])
    classes = np.array([class_of_id.get(int(label), 0) for label in found.classes])
    return replace(found, classes=classes, scores=np.where(known, found.scores, 0.0))


# Classifiers


@torch.no_grad()
def _look_at_classes(model: InferenceModel, findings: ModelFindings, pictures: int) -> None:
    section = model.cfg.dataloader.test.get("dataset")
    data = instantiate(section) if section is not None else None
    if not isinstance(data, ImageDataset):
        raise ConfigError("dataloader.test names no set of labelled images to look at")
    transform = model.build_transform()
    findings.dataset, findings.of_images = data.name, len(data)
    findings.class_names = list(data.class_names)
    device = next(model.model.parameters()).device
    for number in range(min(max(pictures, 1), len(data))):
        image = data.read(number).convert("RGB")
        inputs = transform(image)[None].to(device)
        probability, label = model.model(inputs)[0].float().softmax(-1).max(-1)
        if findings.latency is None:
            findings.latency = _time(model.model, inputs)
        findings.classified.append(
            ClassifiedImage(
                Path(data.image_name(number)).name,
                _shrunk(image),
                data.class_names[int(data.labels[number])],
                data.class_names[int(label)],
                float(probability),
            )
        )
    findings.images = len(findings.classified)


def _shrunk(image: Image.Image) -> np.ndarray:
    image = image.copy()
    image.thumbnail((512, 512))
    return np.asarray(image)


def _time(model: nn.Module, inputs: Any) -> Latency:
    """Seconds of one image; a slow model is not repeated as often."""
    device = next(model.parameters()).device
    latency = measure_latency(model, (inputs,), batch_size=1, device=device, warmup=1, repeats=3)
    if latency.median > _LONG_SECONDS:
        return latency
    return measure_latency(model, (inputs,), batch_size=1, device=device, warmup=_WARM_UP, repeats=_REPEATS)
