"""Templates, charts and pictures of the page: nothing breaks it, whatever texts and values they are given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError

from mokd_det.report.boxes_picture import boxes_picture, image_data
from mokd_det.report.page import page_templates
from mokd_det.report.run_record import RunGroup
from mokd_det.visualization import BoxSet
from mokd_det.visualization.chart import Chart, Curve
from mokd_det.visualization.inline_svg import chart_svg, page_colour

NASTY = "<script>alert('&\"')</script>]]>"
PARTS = page_templates().get_template("parts.html").module


@given(st.text(st.characters(exclude_categories=["C"])))
def test_any_text_survives_as_text(text):
    parsed = ElementTree.fromstring(PARTS.table(["", text], [["a", text]]))
    assert [cell.text or "" for cell in parsed.iter("td")] == [text.replace("\r", "\n")]
    root = ElementTree.fromstring(PARTS.bars([(text, "", [(RunGroup(text, 0, []), 1.0, text)])], 1.0))
    assert [node.get("title") for node in root.iter("div") if node.get("title")] == [f"{text}: {text}"]


def test_what_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError):
        page_templates().get_template("speed.html").render(data={})


def chart(*curves: Curve, **options) -> ElementTree.Element:
    svg = chart_svg(Chart("a <b>", curves, **options))
    assert " id=" not in svg and "url(" not in svg and "font-family" not in svg and "http" not in svg
    return ElementTree.fromstring(svg)


def curve(x, y, **options) -> Curve:
    return Curve(NASTY, page_colour(1), np.array(x, dtype=float), np.array(y, dtype=float), **options)


def lines(svg: ElementTree.Element) -> list[ElementTree.Element]:
    """The paths that say whose they are."""
    return [path for path in svg.iter("path") if path.find("title") is not None]


def test_a_chart_places_its_points_and_tells_them():
    svg = chart(curve([0, 50, 100], [0, 5, 10]), limits=(0.0, 10.0))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
    assert dots[0][0] < dots[1][0] < dots[2][0] and dots[0][1] > dots[1][1] > dots[2][1]
    assert dots[1] == pytest.approx(np.mean([dots[0], dots[2]], axis=0), abs=0.02)
    assert [t.text for t in svg.iter("text")].count("10") == 1
    assert [t.text for t in svg.iter("title")] == [
        NASTY,
        *(f"{NASTY}: {y} at {x}" for x, y in ((0, 0), (50, 5), (100, 10))),
    ]
    (line,) = lines(svg)
    assert "stroke: var(--c1)" in line.get("style")
    assert svg.get("aria-label") == f"a <b>: {NASTY}"


def test_colours_are_the_style_sheets():
    style = chart_svg(Chart("t", [curve([0, 1], [1, 2])], reference=1.5))
    assert all(f"var(--{name})" in style for name in ("c1", "ink", "soft", "rule")) and "#" not in style


def test_a_text_that_looks_like_a_colour_stays_a_text():
    text = f"#262626 {page_colour(3)}"
    root = chart(Curve(text, page_colour(1), np.array([0.0, 1.0]), np.array([1.0, 2.0])))
    assert root.get("aria-label") == f"a <b>: {text}"
    truth = BoxSet(np.array([[0, 0, 30, 30.0]]), np.array([0]))
    pixels = np.zeros((50, 60, 3), dtype=np.uint8)
    picture = ElementTree.fromstring(boxes_picture(pixels, truth, truth, [text], text))
    assert picture.find("title").text == text and text in [node.text.strip() for node in picture.iter("text")]


def test_gaps_and_what_has_no_logarithm_are_left_out():
    svg = chart(curve([0, 1, 2, 3, 4], [1, np.nan, 2, -1, 3]), scale="log")
    assert len(list(svg.iter("circle"))) == 3
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode").replace(NASTY, "")


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([6.0, 11.0], {"6", "8", "10"}),
        ([0.3, 9.0], {"0.5", "1", "2", "5"}),
        ([1e-2, 1e3], {"0.1", "1", "10", "100"}),
    ],
)
def test_a_logarithmic_axis_has_several_ticks(values, ticks):
    svg = chart(curve([0, 1], values), scale="log")
    assert ticks <= {text.text for text in svg.iter("text") if text.get("style").count("end")}


@pytest.mark.parametrize("values", [[], [5.0], [2.0, 2.0], [0.0, 0.0], [np.nan, np.nan], [-3.0, 1e9]])
@pytest.mark.parametrize(
    "options", [{}, {"scale": "log"}, {"scale": "symlog"}, {"from_zero": True}, {"reference": 1.0}]
)
@pytest.mark.filterwarnings("error")
def test_any_values_can_be_drawn(values, options):
    svg = chart(curve(range(len(values)), values), **options)
    for node in svg.iter():
        assert not any(
            "nan" in value or "inf" in value for key, value in node.attrib.items() if key != "aria-label"
        )


def test_bands_and_long_curves():
    x = np.arange(5000.0)
    svg = chart(curve(x, np.sin(x), low=np.sin(x) - 1, high=np.sin(x) + 1))
    (band,) = [path for path in svg.iter("path") if "fill-opacity" in path.get("style", "")]
    assert band.get("d").count("L") >= 800 and not list(svg.iter("circle"))
    (line,) = lines(svg)
    assert 300 < line.get("d").count("L") < 400


def test_bars_are_on_one_scale():
    first, second = RunGroup(NASTY, 0, []), RunGroup("b", 9, [])
    found = [("<x>", "hint", [(first, 10.0, "10"), (second, None, "–")]), ("y", "", [(first, 5.0, "5")])]
    root = ElementTree.fromstring(PARTS.bars(found, 10.0))
    bars = [node for node in root.iter("span") if (node.get("class") or "").startswith("bar ")]
    assert [node.get("style") for node in bars] == ["width:100.00%", "width:0.00%", "width:50.00%"]
    assert [node.get("class") for node in bars] == ["bar c0", "bar c1", "bar c0"]


def test_stacked_bars_share_the_longest():
    rows = [("a", [1, 3], "4"), ("b", [2, 0], "2")]
    root = ElementTree.fromstring(PARTS.stacked(rows, ["x", "y"], "s", 4))
    pieces = [node for node in root.iter("span") if (node.get("class") or "").startswith("piece")]
    assert [node.get("style") for node in pieces] == ["width:25.00%", "width:75.00%", "width:50.00%"]
    assert [node.get("title") for node in pieces] == ["a, x: 1 s", "a, y: 3 s", "b, x: 2 s"]


def test_boxes_of_a_picture():
    truth = BoxSet(np.array([[0, 0, 10, 10], [20, 20, 30, 30.0]]), np.array([0, 1]))
    found = BoxSet(
        np.array([[0, 0, 10, 10], [0, 0, 10, 10], [40, 40, 45, 45.0]]),
        np.array([0, 1, 0]),
        np.array([0.9, 0.8, 0.7]),
    )
    pixels = np.zeros((50, 60, 3), dtype=np.uint8)
    root = ElementTree.fromstring(boxes_picture(pixels, found, truth, ["cat", NASTY], "<x>"))
    assert root.get("class") == "picture" and root.find("title").text == "<x>"
    width, height = (float(value) for value in root.get("viewBox").split()[2:])
    assert width / height == pytest.approx(60 / 50, rel=1e-3)
    (image,) = root.iter("image")
    assert image.get("class") == "pixelated" and image.get("href").startswith("data:image/png;base64,")
    labels = list(root.iter("text"))
    assert [" ".join(node.text.split()) for node in labels] == ["cat 0.90", f"{NASTY} 0.80", "cat 0.70"]
    for node in (labels[0], labels[2]):
        assert 0 <= float(node.get("x")) <= width - float(node.get("textLength"))
        assert 0 <= float(node.get("y")) <= height
    dashed = [path for path in root.iter("path") if "stroke-dasharray" in path.get("style", "")]
    # Missed, wrong and wrong; each has a seam below it, and Matplotlib strokes the line itself twice.
    assert len(dashed) == 9


def test_images_are_kept_exactly_if_small_and_reduced_if_large():
    assert image_data(np.zeros((50, 60, 3), dtype=np.uint8)).startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1000, 3)).astype(np.uint8)
    large = image_data(noise)
    assert large.startswith("data:image/jpeg;base64,") and len(large) < 600_000
