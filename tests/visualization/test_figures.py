"""What the figures show: read back from the drawn objects and, where it counts, from the pixels."""

from __future__ import annotations

import json

import matplotlib
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle

from mokd_det.visualization import (
    BoxSet,
    RunMetrics,
    curves_figure,
    dynamics_figure,
    predictions_figure,
    save_png,
)

TASK = {"task": ["loss_ce*", "loss_bbox*"]}


def alone(label: str = "alone", factor: float = 1.0) -> RunMetrics:
    records = [
        {
            "iteration": i,
            "loss_ce": factor * (4 - i),
            "loss_ce_0": factor,
            "loss_bbox": factor,
            "pi/task": 1.0,
        }
        for i in range(4)
    ]
    records[-1] |= {"bbox/AP": 20.0 * factor, "bbox/AP50": 40.0 * factor}
    return RunMetrics(label, records, TASK)


def mokd(label: str = "MoKD") -> RunMetrics:
    records = [
        {
            **record,
            "loss_distill_patch": 2.0,
            "loss_distill_neck": 1.0,
            "pi/distill": 0.4,
            "pi/task": 0.6,
            "cosine/distill_task": [-0.5, -0.1, 0.2, 0.4][i],
            "raw_norm_ratio/distill_task": 0.5 + i,
            "log_norm_ratio/distill_task": 5.0 - i,
            "raw_inner_product/distill_task": [-0.02, -0.001, 0.01, 30.0][i],
        }
        for i, record in enumerate(alone().records)
    ]
    return RunMetrics(label, records, {"distill": ["loss_distill_*"], **TASK})


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def panel(figure: Figure, title: str):
    return figure.axes[titles(figure).index(title)]


def assert_no_text_is_cut_off_or_on_another(figure: Figure) -> None:
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [
        *figure.texts,
        *(axes.title for axes in figure.axes),
        *(axes._left_title for axes in figure.axes),
    ]
    texts += [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    assert len(boxes) > 4
    for i, (name, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, f"{name} is cut off"
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, f"{name} is cut off"
        for other, its_box in boxes[i + 1 :]:
            assert not box.overlaps(its_box), f"{name!r} and {other!r} overlap"


def test_curves_have_a_row_for_results_and_one_per_objective():
    figure = curves_figure([alone(), mokd()], title="Runs")
    assert titles(figure) == [
        "AP on the validation data",
        "AP50 on the validation data",
        "Weights of the objectives",
        "Objective “task”",
        "loss_ce",
        "loss_bbox",
        "Objective “distill”",
        "loss_distill_patch",
        "loss_distill_neck",
    ]
    assert [line.get_ydata().tolist() for line in panel(figure, "loss_ce").lines] == [[5, 4, 3, 2]] * 2
    assert panel(figure, "Objective “task”").lines[0].get_ydata().tolist() == [6, 5, 4, 3]
    assert panel(figure, "AP on the validation data").lines[0].get_xydata().tolist() == [[3, 20]]
    # π of the run with one objective says nothing and is not drawn
    assert [line.get_ydata()[0] for line in panel(figure, "Weights of the objectives").lines] == [0.6, 0.4]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["alone", "MoKD"]
    assert_no_text_is_cut_off_or_on_another(figure)


def test_runs_of_one_label_share_a_colour_and_one_legend_entry():
    figure = curves_figure([alone("alone"), mokd(), alone("alone", 2.0)])
    colours = [line.get_color() for line in panel(figure, "loss_ce").lines]
    assert colours[0] == colours[2] != colours[1]
    assert len(figure.legends[0].get_texts()) == 2


def test_many_labels_are_wrapped_instead_of_cut_off():
    figure = curves_figure([alone(f"a run with a rather long name, number {i}") for i in range(6)], title="T")
    assert_no_text_is_cut_off_or_on_another(figure)


def test_curves_of_runs_without_configuration_show_the_terms():
    bare = RunMetrics("bare", [{"iteration": 1, "loss_cls": 1.0, "loss_box": 2.0}], {})
    assert titles(curves_figure([bare])) == ["loss_cls", "loss_box"]


def test_nothing_to_draw_is_an_error():
    empty = RunMetrics("empty", [{"iteration": 1, "lr": 1.0}], {})
    for draw in (curves_figure, dynamics_figure):
        with pytest.raises(ValueError, match="none of the runs"):
            draw([empty])
        with pytest.raises(ValueError, match="none of the runs"):
            draw([])


def test_dynamics_put_runs_side_by_side_on_equal_scales():
    figure = dynamics_figure([alone(), mokd()], title="Dynamics")
    assert len(figure.axes) == 12
    left, right = figure.axes[0::2], figure.axes[1::2]
    assert [axes.get_title() for axes in (left[0], right[0])] == ["alone", "MoKD"]
    assert all(a.get_ylim() == b.get_ylim() and a.get_xlim() == b.get_xlim() for a, b in zip(left, right))
    assert [axes.texts[0].get_text() for axes in left[1:]] == ["one objective"] * 5
    titles = [axes.get_ylabel().partition("\n")[0] for axes in left]
    assert titles[2:] == ["Inner product", "Conflict", "Dominance", "Dominance, logarithms"]
    conflict = right[3].get_legend().get_texts()[0].get_text()
    assert conflict == "distill ↔ task: negative in 50% of the records"
    assert right[2].lines[-1].get_ydata().tolist() == [-0.02, -0.001, 0.01, 30.0]
    assert right[4].lines[-1].get_ydata().tolist() == [0.5, 1.5, 2.5, 3.5]
    assert right[5].lines[-1].get_ydata().tolist() == [5.0, 4.0, 3.0, 2.0]
    assert_no_text_is_cut_off_or_on_another(figure)


def test_dynamics_leave_out_what_no_run_has_logged():
    assert len(dynamics_figure([alone()]).axes) == 1
    fixed = RunMetrics(
        "fixed", [{"iteration": 0, "loss_a": 1.0, "loss_b": 2.0}], {"a": ["loss_a"], "b": ["loss_b"]}
    )
    figure = dynamics_figure([fixed, mokd()])
    assert [axes.texts[0].get_text() for axes in figure.axes[2::2]] == ["not logged"] * 5


def test_dynamics_of_parameter_groups_have_rows_of_their_own():
    objectives = {name: [f"loss_{name}"] for name in ("distill", "cls", "box")}
    pairs = ("distill_cls", "distill_box", "cls_box")
    values = {f"cosine/{pair}{group}": 0.1 for pair in pairs for group in ("/all", "/backbone", "")}
    # Fixed weights log no π; their lines have the names and colours of the other run's all the same.
    fixed = RunMetrics("fixed", [{"iteration": i, **values} for i in range(3)], objectives)
    weights = {f"pi/{name}": 1 / 3 for name in objectives}
    balanced = RunMetrics("balanced", [{"iteration": i, **values, **weights} for i in range(3)], objectives)
    figure = dynamics_figure([fixed, balanced])
    rows = [axes.get_ylabel().partition("\n")[0] for axes in figure.axes[0::2]]
    assert rows == ["Weights", "Conflict", "Conflict, all", "Conflict, backbone"]
    for axes in figure.axes[2:]:
        names = [text.get_text().partition(":")[0] for text in axes.get_legend().get_texts()]
        assert names == ["distill ↔ cls", "distill ↔ box", "cls ↔ box"]
    left, right = figure.axes[2:4]
    assert [line.get_color() for line in left.lines] == [line.get_color() for line in right.lines]
    assert_no_text_is_cut_off_or_on_another(figure)


def boxes(*rows: tuple[float, ...], scores: tuple[float, ...] | None = None) -> BoxSet:
    array = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return BoxSet(array[:, :4], array[:, 4].astype(np.int64), None if scores is None else np.array(scores))


TRUTH = boxes((4, 4, 24, 24, 1), (34, 34, 60, 60, 2))


def draw(found: BoxSet, truth: BoxSet = TRUTH, **options) -> Figure:
    image = np.full((64, 64, 3), 40, dtype=np.uint8)
    return predictions_figure(
        [image], [truth], [("model", [found])], ["zero", "one", "two"], min_score=0.5, **options
    )


def frames(figure: Figure) -> list[tuple[list[float], str]]:
    kinds = {"-": "right", "--": "wrong"}
    found = []
    for patch in figure.axes[1].patches:
        if isinstance(patch, Rectangle):
            style = patch.get_linestyle()
            kind = kinds.get(style) if isinstance(style, str) else ("missed" if style[1][0] == 1 else "wrong")
            found.append(([*patch.get_xy(), patch.get_width(), patch.get_height()], kind))
    return found


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[1].texts]


def test_right_wrong_and_missed_are_told_apart():
    found = boxes((4, 4, 24, 22, 1), (34, 34, 60, 60, 0), (5, 5, 24, 24, 1), scores=(0.9, 0.8, 0.7))
    figure = draw(found)
    assert frames(figure) == [
        ([34, 34, 26, 26], "missed"),
        ([4, 4, 20, 18], "right"),
        ([34, 34, 26, 26], "wrong"),
        # the duplicate: its true box is taken by the better score
        ([5, 5, 19, 19], "wrong"),
    ]
    assert labels(figure) == ["one  0.90", "zero  0.80", "one  0.70"]


def test_only_confident_predictions_are_drawn():
    figure = draw(boxes((4, 4, 24, 24, 1), (34, 34, 60, 60, 2), scores=(0.51, 0.49)))
    assert labels(figure) == ["one  0.51"]
    assert [kind for _, kind in frames(figure)] == ["missed", "right"]


def test_labels_never_lie_on_each_other_even_for_equal_boxes():
    four = boxes(*[(20, 20, 44, 44, i % 3) for i in range(4)], scores=(0.9, 0.8, 0.7, 0.6))
    figure = draw(four, title="Equal boxes")
    figure.canvas.draw()
    extents = [text.get_bbox_patch().get_window_extent() for text in figure.axes[1].texts]
    view = figure.axes[1].get_window_extent()
    for i, extent in enumerate(extents):
        assert view.x0 - 1 <= extent.x0 and extent.x1 <= view.x1 + 1
        for other in extents[i + 1 :]:
            assert not extent.shrunk(0.98, 0.98).overlaps(other.shrunk(0.98, 0.98))


def test_labels_of_boxes_at_the_edges_stay_inside_the_picture():
    edges = boxes((0, 0, 20, 64, 1), (44, 0, 64, 64, 2), scores=(0.9, 0.8))
    figure = draw(edges)
    figure.canvas.draw()
    view = figure.axes[1].get_window_extent()
    for text in figure.axes[1].texts:
        extent = text.get_bbox_patch().get_window_extent()
        assert view.y0 - 1 <= extent.y0 and extent.y1 <= view.y1 + 1


def test_images_without_boxes_and_of_other_shapes_are_drawn():
    wide = np.zeros((30, 90, 3), dtype=np.uint8)
    empty = boxes()
    figure = predictions_figure(
        [wide], [empty], [("m", [boxes(scores=())])], ["zero"], min_score=0.5, row_names=["a"]
    )
    box = figure.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(2.5, rel=0.01)
    with pytest.raises(ValueError, match="0 images"):
        predictions_figure([], [], [], [], min_score=0.5)
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        predictions_figure([wide], [empty], [("m", [empty, empty])], [], min_score=0.5)


def test_the_pixels_of_small_images_are_enlarged_unchanged(tmp_path):
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0, 0], image[1, 1] = (255, 0, 0), (0, 0, 255)
    save_png(predictions_figure([image], [boxes()], [], [], min_score=0.5), tmp_path / "p.png")
    pixels = imread(tmp_path / "p.png")
    reds = (pixels[..., :3] == (1, 0, 0)).all(axis=2)
    blues = (pixels[..., :3] == (0, 0, 1)).all(axis=2)
    assert reds.sum() == pytest.approx(blues.sum(), rel=0.03)
    assert reds.sum() > 20000


def test_the_title_and_the_key_do_not_collide(tmp_path):
    images = [np.zeros((64, 64, 3), dtype=np.uint8)] * 2
    columns = [(name, [boxes(scores=())] * 2) for name in ("teacher", "student alone", "student, MoKD")]
    names = ["1.png", "2.png"]
    figure = predictions_figure(
        images, [TRUTH] * 2, columns, ["0", "1", "2"], min_score=0.3, title="T", row_names=names
    )
    assert_no_text_is_cut_off_or_on_another(figure)


def test_boxes_come_from_annotations_and_from_detectron2s_instances():
    truth = BoxSet.from_annotations(
        [
            {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 5},
            {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 1},
        ]
    )
    assert (truth.boxes.tolist(), truth.classes.tolist(), truth.scores) == ([[1, 2, 4, 6]], [5], None)
    assert BoxSet.from_annotations([]).boxes.shape == (0, 4)
    instances = Instances((8, 8))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 2]]))
    instances.scores = torch.tensor([0.25, 0.75])
    instances.pred_classes = torch.tensor([3, 4])
    found = BoxSet.from_instances(instances)
    assert (found.boxes[0].tolist(), found.classes.tolist(), found.scores.tolist()) == (
        [0, 0, 2, 2],
        [4, 3],
        [0.75, 0.25],
    )


def test_drawing_leaves_matplotlibs_settings_and_its_windows_alone():
    import sys

    before = json.dumps(dict(matplotlib.rcParams), default=str)
    curves_figure([alone()])
    draw(boxes(scores=()))
    assert json.dumps(dict(matplotlib.rcParams), default=str) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_a_failed_write_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "p.png"
    path.write_bytes(b"old")
    figure = curves_figure([alone()])

    def fail(handle, **_):
        handle.write(b"half")
        raise ValueError("no")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(ValueError, match="no"):
        save_png(figure, path)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["p.png"]
