"""What models find, and where they look."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mokd_det.evaluation.model_findings import ModelFindings, Sample
from mokd_det.report.boxes_picture import boxes_picture, data_address, image_data, is_small
from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import Section, absent_section
from mokd_det.visualization.attention_figure import object_attention_figure

__all__ = ["attention_section", "predictions_section"]

_PICTURES = (".png", ".jpg", ".jpeg")
_MAX_ATTENTION = 4


def predictions_section(
    groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings], *, min_score: float
) -> Section:
    """The first images, as they come, with the truth and what each model finds."""
    examined = [group for group in groups if group.label in findings]
    classifiers = [group for group in examined if findings[group.label].classified]
    detectors = [group for group in examined if findings[group.label].samples]
    if not classifiers and not detectors:
        sentence = "Pictures need a trained model and the images that it is evaluated on."
        return absent_section("predictions", "Predictions", sentence)
    data: dict[str, Any] = {"stamps": [], "samples": [], "classifiers": classifiers, "min_score": min_score}
    if classifiers:
        data["stamps_of"] = findings[classifiers[0].label]
        data["stamps"] = list(_stamps(classifiers, findings))
    if detectors:
        data["samples_of"] = findings[detectors[0].label]
        data["samples"] = list(_samples(detectors, findings, min_score))
        data["columns"] = len(detectors) + 1
    return Section("predictions", "Predictions", "Predictions", "predictions", data)


def _stamps(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> Iterator[tuple[Any, ...]]:
    """The first images of the classifiers with their predictions."""
    for number, image in enumerate(findings[groups[0].label].classified):
        said = []
        for group in groups:
            own = findings[group.label].classified
            if number < len(own) and own[number].name == image.name:
                mark = "right" if own[number].found == own[number].truth else "wrong"
                said.append((group, f"{own[number].found} {own[number].probability:.2f}, {mark}"))
        yield image, image_data(image.pixels), is_small(image.pixels), said


def _samples(
    groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings], min_score: float
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The first images of the detectors with their boxes: (file, (caption, SVG) of the truth and each model)."""
    first = findings[groups[0].label]
    for number, sample in enumerate(first.samples):
        columns = [("truth", sample.truth, first.class_names)]
        for group in groups:
            own = findings[group.label]
            if number < len(own.samples) and own.samples[number].file_name == sample.file_name:
                columns.append((group.label, own.samples[number].found.above(min_score), own.class_names))
        yield (
            sample.file_name,
            [
                (
                    name,
                    boxes_picture(sample.pixels, boxes, sample.truth, names, f"{sample.file_name}: {name}"),
                )
                for name, boxes, names in columns
            ],
        )


def attention_section(
    groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings], *, min_score: float
) -> Section:
    """Where the DET tokens look, for the first images, and the pictures in the runs' folders ``attention``."""
    files = []
    for group in groups:
        folder = group.first.directory / "attention"
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix.lower() in _PICTURES:
                kind = "png" if file.suffix.lower() == ".png" else "jpeg"
                files.append((f"{group.label}: {file.stem}", data_address(file.read_bytes(), kind)))
    drawn = list(_attention_pictures(groups, findings, min_score))
    if not drawn and not files:
        return absent_section(
            "attention",
            "Attention",
            "No pictures. Those of ViDT detectors are drawn here when their models are run; any that "
            "python -m mokd_det attention writes into a run's folder attention appear too.",
        )
    return Section("attention", "Attention", "Attention", "attention", {"drawn": drawn, "files": files})


def _attention_pictures(
    groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings], min_score: float
) -> Iterator[tuple[str, str]]:
    """One picture per image, all detectors side by side."""
    samples: dict[str, list[tuple[str, Sample]]] = {}
    for group in groups:
        for sample in findings[group.label].samples if group.label in findings else ():
            if sample.attention is not None:
                samples.setdefault(sample.file_name, []).append((group.label, sample))
    for file_name, found in samples.items():
        detectors = [(label, sample.attention) for label, sample in found if sample.attention is not None]
        figure = object_attention_figure(
            found[0][1].pixels,
            detectors[:_MAX_ATTENTION],
            findings[found[0][0]].class_names,
            threshold=min_score,
            max_objects=3,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        caption = f"{file_name}: {', '.join(label for label, _ in detectors)}"
        yield caption, data_address(buffer.getvalue(), "png")
