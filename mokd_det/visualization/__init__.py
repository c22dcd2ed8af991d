"""Pictures of predictions, curves of runs, the dynamics of their objectives and comparisons of methods, as PNG
files."""

from mokd_det.visualization.comparison import comparison_figure
from mokd_det.visualization.curves import curves_figure
from mokd_det.visualization.dynamics import dynamics_figure
from mokd_det.visualization.figure_style import save_png
from mokd_det.visualization.predictions import BoxSet, predictions_figure
from mokd_det.visualization.run_metrics import RunMetrics, read_run

__all__ = [
    "BoxSet",
    "RunMetrics",
    "comparison_figure",
    "curves_figure",
    "dynamics_figure",
    "predictions_figure",
    "read_run",
    "save_png",
]
