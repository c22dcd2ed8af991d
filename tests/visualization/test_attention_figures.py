"""Grouping of tokens, enlarged maps and the layout of the figures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mokd_det.visualization.attention_detector import CrossAttention, DetectorAttention, SamplingPoints
from mokd_det.visualization.attention_drawing import LEVEL_COLOURS, draw_heat, enlarge_map
from mokd_det.visualization.attention_figure import (
    ClassMaps,
    class_attention_figure,
    confident_tokens,
    group_tokens,
    layer_attention_figure,
    object_attention_figure,
)
from mokd_det.visualization.figure_style import new_figure

NAMES = ("cat", "dog", "price in $x$")


def attention(
    boxes, classes, scores, *, blocks: int = 1, layers: int = 2, grid=(2, 3), seed=0
) -> DetectorAttention:
    """Random attention of the given predictions in a 60 x 40 image."""
    rng = np.random.default_rng(seed)
    count, cells = len(boxes), grid[0] * grid[1]
    weights = rng.random((blocks, 2, count, cells + count))
    weights /= weights.sum(-1, keepdims=True)
    points = rng.uniform(0, 40, (layers, count, 2, 3, 4, 2))
    shares = rng.random((layers, count, 2, 3, 4))
    shares /= shares.sum((-1, -2), keepdims=True)
    return DetectorAttention(
        np.array(boxes, float).reshape(-1, 4),
        np.array(classes),
        np.array(scores, float),
        tuple(CrossAttention(w, grid, (20.0, 20.0)) for w in weights),
        tuple(SamplingPoints(p, s, (32, 16, 8)) for p, s in zip(points, shares, strict=True)),
    )


A, B, C = [0, 0, 20, 20], [30, 10, 50, 30], [5, 20, 15, 40]


def test_confident_tokens_are_the_best_first():
    found = attention([A, B, C], [0, 1, 2], [0.5, 0.4, 0.9])
    assert confident_tokens(found, 0.5) == [2, 0]
    assert confident_tokens(found, 0.0) == [2, 0, 1]


def test_tokens_of_one_object_stand_together():
    first = attention([A, B], [0, 1], [0.6, 0.9])
    second = attention([[1, 0, 20, 20], C, [0, 0, 19, 20]], [0, 2, 1], [0.7, 0.8, 0.95])
    found = group_tokens([first, second], 0.5)
    # the first detector's by score; the second's: of two on A the better one joins it, though of another class
    assert [o.tokens for o in found] == [(1, None), (0, 2), (None, 1), (None, 0)]
    np.testing.assert_array_equal(found[1].box, A)
    np.testing.assert_array_equal(found[2].box, C)


def test_an_object_of_the_same_class_comes_before_a_closer_one():
    first = attention([A, [2, 0, 22, 20]], [0, 1], [0.9, 0.8])
    second = attention([A], [1], [0.7])
    assert [o.tokens for o in group_tokens([first, second], 0.5)] == [(0, None), (1, 0)]


def test_boxes_that_hardly_overlap_are_different_objects():
    first, second = attention([A], [0], [0.9]), attention([[10, 0, 30, 20]], [0], [0.9])
    assert [o.tokens for o in group_tokens([first, second], 0.5)] == [(0, None), (None, 0)]


def test_enlarged_cells_are_exact():
    weights = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    cells = enlarge_map(weights, (20, 10), (15, 50), smooth=False)
    assert cells.shape == (15, 50)  # the last cells are cut
    np.testing.assert_array_equal(cells[:10, :20], 1.0)
    np.testing.assert_array_equal(cells[10:, 40:], 6.0)


def test_enlarged_smoothly_is_linear_between_centres():
    heat = enlarge_map(np.array([[0.0, 1.0], [0.0, 1.0]]), (10, 10), (20, 20), smooth=True)
    np.testing.assert_allclose(heat[:, :5], 0.0, atol=1e-12)
    np.testing.assert_allclose(heat[:, 15:], 1.0, atol=1e-12)
    np.testing.assert_allclose(heat[3, 5:15], (np.arange(5, 15) + 0.5 - 5) / 10, atol=1e-12)


@pytest.mark.parametrize(("size", "smooth"), [(2, False), (7, False), (8, True)])
def test_coarse_maps_are_shown_as_cells_and_fine_ones_smoothly(size, smooth):
    axes = new_figure(2, 2).add_axes((0, 0, 1, 1))
    weights = np.linspace(0, 1, size * size).reshape(size, size)
    draw_heat(axes, np.full((64, 64, 3), 100, np.uint8), weights, (64 / size, 64 / size))
    found = len(np.unique(axes.images[0].get_array().reshape(-1, 3), axis=0))
    assert found > 100 if smooth else found == size * size
    assert axes.get_xlim() == (0, 64) and axes.get_ylim() == (64, 0)
    assert tuple(axes.images[0].get_extent()) == (0, 64, 64, 0)


def texts(figure) -> str:
    return "\n".join(
        [*(t.get_text() for t in figure.texts), *(t.get_text() for a in figure.axes for t in a.texts)]
    )


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def test_objects_of_two_detectors_side_by_side(image):
    first = attention([A, B], [0, 2], [0.6, 0.9])
    second = attention([A], [0], [0.7], blocks=2, layers=1, seed=1)
    figure = object_attention_figure(image, [("teacher", first), ("student", second)], NAMES, threshold=0.5)
    assert len(figure.axes) == 2 * 5 + 1  # rows of image and two panels each, and the scale
    said = texts(figure)
    assert "price in $x$ 0.90, " in said and "cat 0.60, " in said and "cat 0.70, " in said
    assert said.count("no token ≥ 0.5") == 2
    share = second.cross[-1].on_image()[0]
    assert f"cat 0.70, {share:.0%} on the image" in said
    # the picture is the last block's, the points the last layer's
    dots = np.concatenate([d.get_offsets() for d in figure.axes[9].collections])
    np.testing.assert_allclose(np.sort(dots, 0), np.sort(second.sampling[-1].points[0].reshape(-1, 2), 0))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["stride 8", "stride 16", "stride 32"]


def test_dots_have_their_levels_colour_and_their_weights_area(image):
    found = attention([A], [0], [0.9])
    figure = object_attention_figure(image, [("model", found)], NAMES, threshold=0.5)
    by_colour = {tuple(np.round(d.get_facecolor()[0][:3], 3)): d for d in figure.axes[2].collections}
    weights = found.sampling[-1].weights[0]
    for level, colour in ((2, LEVEL_COLOURS[0]), (1, LEVEL_COLOURS[1]), (0, LEVEL_COLOURS[2])):
        rgb = tuple(np.round([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)], 3))
        np.testing.assert_allclose(
            by_colour[rgb].get_sizes() / 60.0, weights[:, level].ravel() / weights.max()
        )


def test_what_is_not_drawn_is_said(image):
    found = attention([A, B, C], [0, 1, 2], [0.9, 0.8, 0.7])
    assert "2 more objects not drawn" in texts(
        object_attention_figure(image, [("model", found)], NAMES, threshold=0.5, max_objects=1)
    )
    nothing = object_attention_figure(image, [("model", found)], NAMES, threshold=0.95)
    assert len(nothing.axes) == 4 and "no token ≥ 0.95" in texts(nothing)
    assert "not drawn" not in texts(nothing)


@pytest.mark.parametrize("models", [1, 2, 3])
def test_the_key_lies_in_the_figure_and_covers_nothing(image, models):
    found = attention([A, B, C], [0, 1, 2], [0.9, 0.8, 0.7])
    named = [(f"model {number}", found) for number in range(models)]
    figure = object_attention_figure(image, named, NAMES, threshold=0.5, max_objects=1)
    FigureCanvasAgg(figure).draw()
    words = ("attention: 0", "sampling points:", "not drawn")
    parts = [t for t in figure.texts if any(word in t.get_text() for word in words)] + figure.legends
    boxes = [part.get_window_extent() for part in parts]
    assert len(boxes) == 4
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_layers_of_unequal_detectors(image):
    first = attention([A, B], [0, 1], [0.6, 0.9], blocks=2, layers=3)
    second = attention([A], [0], [0.7], blocks=1, layers=2)
    figure = layer_attention_figure(image, [("teacher", first), ("student", second)], NAMES, threshold=0.5)
    assert len(figure.axes) == 4 * (1 + 2 + 3) + 1
    said = texts(figure)
    assert said.count("no such block") == said.count("no such layer") == 1
    assert said.count("no token ≥ 0.5") == 5
    for heading in ("block 2", "layer 3", "teacher", "student", "dog 0.90"):
        assert heading in said


def test_classifiers_side_by_side(image):
    rng = np.random.default_rng(1)
    maps = [
        ClassMaps("cat 0.90", (rng.random((4, 6)), rng.random((4, 6)))),
        ClassMaps("dog 0.50", (rng.random((4, 6)), None)),
    ]
    figure = class_attention_figure(
        [image, image],
        [("DeiT", maps), ("student", maps)],
        ("final block", "rollout"),
        row_names=["a.png", "b.png"],
    )
    assert len(figure.axes) == 2 * 5 + 1
    said = texts(figure)
    assert said.count("final block") == said.count("cat 0.90") == said.count("no such block") == 2
    assert "a.png" in said and "sampling points" not in said
    with pytest.raises(ValueError, match="2 images"):
        class_attention_figure([image, image], [("DeiT", maps[:1])], ("final block", "rollout"))


def test_a_figure_needs_a_detector(image):
    with pytest.raises(ValueError, match="needs a detector"):
        object_attention_figure(image, [], NAMES, threshold=0.5)
