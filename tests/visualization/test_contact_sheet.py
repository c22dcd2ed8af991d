"""The contact sheet of a data set: what is sampled, how it is scaled, and that odd images can be drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mokd_det.data import CocoFormatSource, sample_images
from mokd_det.data.coco_columns import read_columns
from mokd_det.data.findings import CollectFindings
from mokd_det.data.sample_images import SampleImage
from mokd_det.visualization.contact_sheet import contact_sheet


def cell(count: int, shape: tuple[int, int] | None = (40, 60), name: str = "a.png") -> SampleImage:
    rng = np.random.default_rng(count)
    corners = rng.uniform(0, 20, (count, 2))
    height, width = shape or (10, 10)
    return SampleImage(
        file_name=name,
        image_id=7,
        size_wh=(width, height),
        pixels=None if shape is None else np.full((*shape, 3), 128, dtype=np.uint8),
        boxes=np.concatenate((corners, corners + rng.uniform(2, 20, (count, 2))), axis=1),
        classes=np.arange(count) % 2,
        crowd=np.arange(count) % 3 == 1,
    )


def texts(figure) -> list[str]:
    found = [text.get_text() for text in figure.texts]
    return found + [text.get_text() for axes in figure.axes for text in axes.texts]


def test_cells_say_what_they_show() -> None:
    cells = [cell(0), cell(2), cell(30, (9, 200)), cell(1, None), cell(1, (1, 1), "x" * 60 + "end.png")]
    figure = contact_sheet(cells, ["$5 bolt", "nut"], title="screws", subtitle="5 of 9")
    assert len(figure.axes) == 5
    found = texts(figure)
    for text in ("screws", "5 of 9", "id 7, 60 x 40, 0 boxes", "id 7, 60 x 40, 2 boxes", "cannot be decoded"):
        assert text in found
    assert "id 7, 200 x 9, 30 boxes, 12 named" in found
    assert len(figure.axes[2].texts) == 12 and len(figure.axes[2].patches) == 30
    assert "$5 bolt" in found and "nut (crowd)" in found
    assert any(text.startswith("…") and text.endswith("end.png") for text in found)
    squares = {
        tuple(np.round(axes.get_position().size * figure.get_size_inches(), 6)) for axes in figure.axes
    }
    assert len(squares) == 1
    figure.canvas.draw()


def test_a_sheet_needs_an_image() -> None:
    with pytest.raises(ValueError, match="needs an image"):
        contact_sheet([], ["a"])


def test_the_sample_is_fair_and_scaled(tmp_path) -> None:
    images = 30
    for i in range(images):
        Image.new("RGB", (1200, 600), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    content = {
        "categories": [{"id": 1, "name": "a"}],
        "images": [{"id": i, "file_name": f"{i}.png", "width": 1200, "height": 600} for i in range(images)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [600, 300, 300 + i, 60]} for i in range(images)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    columns = read_columns(CocoFormatSource(None, str(tmp_path / "a.json"), str(tmp_path)), CollectFindings())
    every = {s.image_id: s for s in sample_images(columns, str(tmp_path), 99, seed=0, max_side=300)}
    assert set(every) == set(range(images))
    assert every[3].pixels is None
    assert every[5].pixels.shape == (150, 300, 3) and every[5].pixels[0, 0, 0] == 5
    np.testing.assert_allclose(every[5].boxes, [[150, 75, 150 + 305 / 4, 90]])
    draws = [[s.image_id for s in sample_images(columns, str(tmp_path), 6, seed=seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(set(draws[0])) == 6
