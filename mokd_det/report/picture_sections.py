"""What models find, and where they look."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence

from mokd_det.report.boxes_picture import boxes_picture, image_data
from mokd_det.report.markup import Content, Markup, element
from mokd_det.report.model_findings import ModelFindings, Sample
from mokd_det.report.run_record import RunGroup
from mokd_det.report.section import (
    Section,
    absent,
    colour_of,
    legend,
)
from mokd_det.visualization.attention_figure import object_attention_figure
from mokd_det.visualization.predictions import BoxSet

__all__ = ["attention_section", "predictions_section"]

_PICTURES = (".png", ".jpg", ".jpeg")
_MAX_ATTENTION = 4


def predictions_section(
    groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings], *, min_score: float
) -> Section:
    """The first images, as they come, with the truth and what each model finds."""
    content: list[Content] = []
    classifiers = [g for g in groups if g.label in findings and findings[g.label].classified]
    if classifiers:
        content += _classified(classifiers, findings)
    shown = [group for group in groups if group.label in findings and findings[group.label].samples]
    if not shown and not classifiers:
        return Section(
            "predictions",
            "Predictions",
            "Predictions",
            absent("Pictures need a trained model and the images that it is evaluated on."),
        )
    if shown:
        content += _detected(shown, findings, min_score)
    return Section("predictions", "Predictions", "Predictions", content)


def _classified(groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings]) -> list[Content]:
    """The first images of the classifiers with their predictions."""
    first = findings[groups[0].label]
    figures = []
    for number, image in enumerate(first.classified):
        said = []
        for group in groups:
            own = findings[group.label].classified
            if number < len(own) and own[number].name == image.name:
                mark = "right" if own[number].found == own[number].truth else "wrong"
                words = f"{own[number].found} {own[number].probability:.2f}, {mark}"
                swatch = element("i", "", class_=f"swatch c{colour_of(group)}")
                said.append(element("div", swatch, words, class_="key", title=group.label))
        height, width = image.pixels.shape[:2]
        small = "pixelated" if max(height, width) <= 160 else None
        picture = element(
            "img", src=image_data(image.pixels), alt=f"{image.name}: {image.truth}", class_=small
        )
        figures.append(element("figure", picture, element("figcaption", f"truth: {image.truth}"), said))
    return [
        element("p", f"The first {len(figures)} images of {first.dataset}, not chosen.", class_="soft"),
        legend(groups),
        element("div", figures, class_="pictures stamps"),
    ]


def _detected(
    shown: Sequence[RunGroup], findings: Mapping[str, ModelFindings], min_score: float
) -> list[Content]:
    """The first images of the detectors with their boxes."""
    first = findings[shown[0].label]
    content: list[Content] = [
        element(
            "p",
            f"The first {len(first.samples)} images of {first.dataset}, not chosen; predictions with a score of "
            f"{min_score:g} or more. Solid frame: right (class, and IoU ≥ 0.5 with the truth); dashed with a dark "
            "label: wrong, or found twice; dotted: missed.",
            class_="soft",
        )
    ]
    rows = []
    for number, sample in enumerate(first.samples):
        data = image_data(sample.pixels)
        height, width = sample.pixels.shape[:2]
        pictures = [
            _picture("truth", data, (width, height), sample.truth, sample.truth, first, sample.file_name)
        ]
        for group in shown:
            own = findings[group.label]
            if number >= len(own.samples) or own.samples[number].file_name != sample.file_name:
                continue
            found = own.samples[number].found.above(min_score)
            pictures.append(
                _picture(group.label, data, (width, height), found, sample.truth, own, sample.file_name)
            )
        rows.append(
            element("div", element("h4", sample.file_name), element("div", pictures, class_="pictures"))
        )
    content.append(element("div", rows, class_="samples", style=f"--columns: {len(shown) + 1}"))
    return content


def _picture(
    name: str,
    data: str,
    size_wh: tuple[int, int],
    found: BoxSet,
    truth: BoxSet,
    findings: ModelFindings,
    file_name: str,
) -> Markup:
    drawn = boxes_picture(data, size_wh, found, truth, findings.class_names, f"{file_name}: {name}")
    return element("figure", element("figcaption", name), drawn)


def attention_section(
    groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings], *, min_score: float
) -> Section:
    """Where the DET tokens look, for the first images, and the pictures in the runs' folders ``attention``."""
    content: list[Content] = []
    drawn = list(_attention_pictures(groups, findings, min_score))
    if drawn:
        content.append(
            element(
                "p",
                "For each object the DET token that found it: where it looks in the backbone's last block (RAM "
                "attention), and the points that it reads in the decoder's last layer.",
                class_="soft",
            )
        )
        content.append(element("div", drawn, class_="pictures wide"))
    files = []
    for group in groups:
        folder = group.first.directory / "attention"
        for file in sorted(folder.iterdir()) if folder.is_dir() else ():
            if file.suffix.lower() in _PICTURES:
                kind = "png" if file.suffix.lower() == ".png" else "jpeg"
                files.append(_image(f"{group.label}: {file.stem}", file.read_bytes(), kind))
    if files:
        content.append(element("div", files, class_="pictures wide"))
    if not content:
        content.append(
            absent(
                "No pictures. Those of ViDT detectors are drawn here when their models are run; any that "
                "python -m mokd_det attention writes into a run's folder attention appear too."
            )
        )
    return Section("attention", "Attention", "Attention", content)


def _attention_pictures(
    groups: Sequence[RunGroup], findings: Mapping[str, ModelFindings], min_score: float
) -> Iterator[Markup]:
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
        yield _image(f"{file_name}: {', '.join(label for label, _ in detectors)}", buffer.getvalue(), "png")


def _image(caption: str, content: bytes, kind: str) -> Markup:
    data = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return element("figure", element("figcaption", caption), element("img", src=data, alt=caption))
