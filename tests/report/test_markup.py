"""HTML that cannot break, whatever texts it is given."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mokd_det.report.bars import Bar, BarGroup, bar_groups, stacked_bars
from mokd_det.report.boxes_picture import boxes_picture, image_data
from mokd_det.report.line_chart import Line, line_chart, nice_ticks
from mokd_det.report.markup import Markup, element, join
from mokd_det.visualization import BoxSet

NASTY = "<script>alert('&\"')</script>\x00\udcff]]>"


@given(st.text(), st.text())
def test_any_text_survives_as_text(content, attribute):
    parsed = ElementTree.fromstring(element("p", content, title=attribute))
    assert len(parsed) == 0
    kept = "".join(parsed.itertext())
    assert len(kept) <= len(content)
    # Line ends are one character for a parser; what no document can hold is replaced.
    assert [c for c in kept if c.isalnum()] == [c for c in content if c.isalnum()]
    assert set(parsed.attrib) == {"title"}


def test_elements():
    assert element("p", "a", None, [Markup("<b>x</b>"), 3], class_="k", aria_label="l") == (
        '<p class="k" aria-label="l">a<b>x</b>3</p>'
    )
    assert element("img", src="data:,", alt=None) == '<img src="data:," />'
    assert element("div") == "<div></div>"
    assert element("line", x1=1.23456, x2=2.0) == '<line x1="1.23" x2="2"></line>'
    assert join("<", Markup("<br />")) == "&lt;<br />"


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(-1, 1) == [-1, -0.5, 0, 0.5, 1]
    assert nice_ticks(3, 3) == [3]
    assert nice_ticks(0.013, 0.017) == pytest.approx([0.013, 0.014, 0.015, 0.016, 0.017])


def chart(lines, **options) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart("a <b>", lines, **options))


def line(x, y, **options) -> Line:
    return Line(NASTY, 1, np.array(x, dtype=float), np.array(y, dtype=float), **options)


def test_a_chart_places_its_points():
    figure = chart([line([0, 50, 100], [0, 5, 10])], limits=(0.0, 10.0))
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in figure.iter("circle")]
    assert dots[0][0] < dots[1][0] < dots[2][0] and dots[0][1] > dots[1][1] > dots[2][1]
    assert dots[1] == pytest.approx(np.mean([dots[0], dots[2]], axis=0), abs=0.02)
    assert [t.text for t in figure.iter("text")].count("10") == 1
    assert "at 50" in "".join(figure.itertext())


def test_gaps_and_what_has_no_logarithm_are_left_out():
    figure = chart([line([0, 1, 2, 3, 4], [1, np.nan, 2, -1, 3])], logarithmic=True)
    (path,) = [p.get("d") for p in figure.iter("path")]
    assert path.count("M") == 3 and "nan" not in path
    assert len(list(figure.iter("circle"))) == 3


@pytest.mark.parametrize("values", [[], [5.0], [2.0, 2.0], [0.0, 0.0], [np.nan, np.nan], [-3.0, 1e9]])
@pytest.mark.parametrize("options", [{}, {"logarithmic": True}, {"from_zero": True}, {"reference": 1.0}])
def test_any_values_can_be_drawn(values, options):
    figure = chart([line(range(len(values)), values)], **options)
    assert "nan" not in ElementTree.tostring(figure, encoding="unicode").lower().replace(NASTY.lower(), "")


def test_bands_and_long_curves():
    x = np.arange(5000.0)
    figure = chart([line(x, np.sin(x), low=np.sin(x) - 1, high=np.sin(x) + 1)])
    (band,) = figure.iter("polygon")
    assert len(band.get("points").split()) == 800
    (path,) = figure.iter("path")
    assert path.get("d").count("L") == 399 and not list(figure.iter("circle"))


def test_bars_are_on_one_scale():
    groups = [
        BarGroup("<x>", [Bar(NASTY, 0, 10.0, "10"), Bar("b", 1, None, "–")], "hint"),
        BarGroup("y", [Bar("a", 0, 5.0, "5")]),
    ]
    root = ElementTree.fromstring(bar_groups(groups))
    widths = [node.get("style") for node in root.iter("span") if (node.get("class") or "").startswith("bar ")]
    assert widths == ["width:100.00%", "width:0.00%", "width:50.00%"]


def test_stacked_bars_share_the_longest():
    root = ElementTree.fromstring(
        stacked_bars([("a", [1, 3], "4"), ("b", [2, 0], "2")], ["x", "y"], unit="s")
    )
    widths = [
        node.get("style") for node in root.iter("span") if (node.get("class") or "").startswith("piece")
    ]
    assert widths == ["width:25.00%", "width:75.00%", "width:50.00%"]


def test_boxes_of_a_picture():
    truth = BoxSet(np.array([[0, 0, 10, 10], [20, 20, 30, 30.0]]), np.array([0, 1]))
    found = BoxSet(
        np.array([[0, 0, 10, 10], [0, 0, 10, 10], [40, 40, 45, 45.0]]),
        np.array([0, 1, 0]),
        np.array([0.9, 0.8, 0.7]),
    )
    data = image_data(np.zeros((50, 60, 3), dtype=np.uint8))
    root = ElementTree.fromstring(boxes_picture(data, (60, 50), found, truth, ["cat", NASTY], "x"))
    assert root.get("viewBox") == "0 0 60 50" and root.get("class") == "picture"
    dashed = [
        node.get("stroke-dasharray") is not None
        for node in root.iter("rect")
        if node.get("stroke") == "#ffffff"
    ]
    assert dashed[0]
    labels = [node.text for node in root.iter("text")]
    assert labels[-1] == "cat 0.90" and len(labels) == 3 and labels[0] == "cat 0.70"
    for node in root.iter("text"):
        assert 0 <= float(node.get("x")) <= 60 and 0 <= float(node.get("y")) <= 50


def test_images_are_kept_exactly_if_small_and_reduced_if_large():
    assert image_data(np.zeros((50, 60, 3), dtype=np.uint8)).startswith("data:image/png;base64,")
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1000, 3)).astype(np.uint8)
    large = image_data(noise)
    assert large.startswith("data:image/jpeg;base64,") and len(large) < 600_000
