"""Names of classes, runs and files are drawn as they stand, whatever they mean to a typesetter."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.texmanager import TexManager
from matplotlib.text import Text

from mokd_det.data.sample_images import SampleImage
from mokd_det.display_backend import replace_missing_backend
from mokd_det.evaluation.method_comparison import MethodRuns, RunResult
from mokd_det.evaluation.tide import TideErrors, TideReport
from mokd_det.visualization import curves_figure, dynamics_figure, predictions_figure
from mokd_det.visualization.attention_figure import (
    ClassMaps,
    class_attention_figure,
    layer_attention_figure,
    object_attention_figure,
)
from mokd_det.visualization.comparison import comparison_figure
from mokd_det.visualization.contact_sheet import contact_sheet
from mokd_det.visualization.detection_drawing import DetectionDrawer
from mokd_det.visualization.tide_bars import tide_figure
from tests.visualization.test_attention_figures import A, attention
from tests.visualization.test_figures import alone, boxes, mokd

NAME = r"_$a^{b$ \frac %<i>&"
IMAGE = np.full((40, 60, 3), 90, dtype=np.uint8)
TRUTH = boxes((4, 4, 24, 24, 0))


def _tide() -> Figure:
    dap = dict.fromkeys(("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss", "FalsePos", "FalseNeg"), 1.0)
    report = TideReport(NAME, [TideErrors(0.5, 0.1, 90.0, 90.0, dap, dap)], None, 0, 0, [], 0, [])
    return tide_figure([report], title=NAME)


def _comparison() -> Figure:
    runs = {seed: RunResult(20.0 + seed, [1, 2], [10.0, 20.0], 1.0) for seed in range(2)}
    return comparison_figure(
        {NAME: [MethodRuns("m", NAME, runs)]}, references={NAME: 10.0}, baseline="m", title=NAME
    )


def _sheet() -> Figure:
    cell = SampleImage(NAME, 1, (60, 40), IMAGE, TRUTH.boxes, TRUTH.classes, np.zeros(1, dtype=bool))
    return contact_sheet([cell], [NAME], title=NAME, subtitle=NAME)


DETECTORS = [(NAME, attention([A], [0], [0.9]))]
FIGURES: dict[str, tuple[Callable[[], Figure], int]] = {
    # the figure, and how many texts of it hold the name
    "curves": (lambda: curves_figure([mokd(NAME), alone("_other")], title=NAME), 2),
    "dynamics": (lambda: dynamics_figure([mokd(NAME)], title=NAME), 2),
    "predictions": (
        lambda: predictions_figure(
            [IMAGE], [TRUTH], [(NAME, [boxes((4, 4, 24, 24, 0), scores=(0.9,))])], [NAME],
            min_score=0.5, title=NAME, row_names=[NAME],
        ),
        5,
    ),
    "tide": (_tide, 3),
    "comparison": (_comparison, 3),
    "contact sheet": (_sheet, 4),
    "objects": (
        lambda: object_attention_figure(IMAGE, DETECTORS, [NAME], threshold=0.5, title=NAME),
        3,
    ),
    "layers": (lambda: layer_attention_figure(IMAGE, DETECTORS, [NAME], threshold=0.5, title=NAME), 3),
    "classes": (
        lambda: class_attention_figure(
            [IMAGE], [(NAME, [ClassMaps(NAME, [np.eye(2)])])], [NAME], row_names=[NAME], title=NAME
        ),
        5,
    ),
}  # fmt: skip


@pytest.fixture(params=[False, True], ids=["plain", "usetex"])
def no_typesetting(request, monkeypatch: pytest.MonkeyPatch):
    """A user's settings, and an error for every text that is parsed."""

    def parsed(_, text: str, *__, **___):
        raise AssertionError(f"{text!r} is parsed")

    monkeypatch.setattr(MathTextParser, "parse", parsed)
    monkeypatch.setattr(TexManager, "get_text_width_height_descent", parsed)
    with matplotlib.rc_context({"text.usetex": request.param}):
        yield


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_show_names_as_they_stand(kind: str, no_typesetting) -> None:
    make, count = FIGURES[kind]
    figure = make()
    figure.savefig(io.BytesIO(), format="png")
    shown = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    assert sum(NAME in text for text in shown) >= count
    if kind == "curves":
        assert "_other" in shown


def test_detections_show_class_names_as_they_stand(no_typesetting) -> None:
    found = Instances((40, 60), pred_boxes=Boxes(torch.tensor([[4.0, 4, 24, 24]])), scores=torch.ones(1))
    found.pred_classes = torch.zeros(1, dtype=torch.int64)
    drawn = DetectionDrawer([NAME], scale=4).draw(IMAGE, found)
    assert (drawn != DetectionDrawer([""], scale=4).draw(IMAGE, found)).any()


def test_a_backend_that_is_not_installed_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks name theirs to every program that they start, also to those of other environments."""
    code = "import mokd_det, matplotlib.pyplot as plt; plt.figure(); print(plt.get_backend())"
    environment = {**os.environ, "MPLBACKEND": "module://no_such_package.backend_inline"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip().lower()) == (0, "agg"), done.stderr
    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "matplotlib_inline" else object()
    )
    for name, expected in (
        ("module://matplotlib_inline.backend_inline", "Agg"),
        ("inline", "Agg"),
        ("module://installed.backend", "module://installed.backend"),
        ("pdf", "pdf"),
    ):
        monkeypatch.setenv("MPLBACKEND", name)
        replace_missing_backend()
        assert os.environ["MPLBACKEND"] == expected
