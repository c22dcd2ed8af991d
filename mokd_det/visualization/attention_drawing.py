"""Attention on pictures: a map as a veil of light over the image, sampling points as dots."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from scipy.ndimage import map_coordinates

from mokd_det.visualization.attention_detector import SamplingPoints
from mokd_det.visualization.box_drawing import show_image

__all__ = ["HEAT", "LEVEL_COLOURS", "draw_heat", "draw_points", "enlarge_map"]

HEAT: LinearSegmentedColormap = matplotlib.colormaps["inferno"]

LEVEL_COLOURS = ("#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#FFFFFF")
"""Of the feature levels, finest first, on photographs darkened to grey."""

_SMALLEST_SIDE = 256
_ENOUGH_CELLS = 8
_LARGEST_DOT = 60.0


def enlarge_map(
    weights: np.ndarray, cell: tuple[float, float], size: tuple[int, int], smooth: bool = True
) -> np.ndarray:
    """A map of cells (H, W) as a picture of the size (height, width): the weight of the cell under each pixel.

    Args:
        cell: width and height of a cell in pixels of the picture; cells beyond its edge are cut.
        smooth: interpolate linearly between the centres of the cells; the outermost half cells are constant.
    """
    rows = (np.arange(size[0]) + 0.5) / cell[1] - 0.5
    columns = (np.arange(size[1]) + 0.5) / cell[0] - 0.5
    grid = np.meshgrid(rows, columns, indexing="ij")
    return map_coordinates(weights.astype(np.float64), grid, order=1 if smooth else 0, mode="nearest")


def draw_heat(
    axes: Axes,
    image: np.ndarray,
    weights: np.ndarray,
    cell: tuple[float, float],
    *,
    smooth: bool | None = None,
    largest: float | None = None,
) -> None:
    """Show a picture with attention over it, from dark (none) to bright (``largest``).

    Args:
        axes: data coordinates become pixels of the image.
        image: uint8 (H, W, 3).
        weights: (h, w).
        cell: width and height of a cell in pixels of the image.
        smooth: see :func:`enlarge_map`; None: for maps of at least 8 by 8 cells, as between fewer it would show what
            is not there.
        largest: the weight that is drawn brightest; None: the map's own largest.
    """
    size = image.shape[:2]
    if smooth is None:
        smooth = min(weights.shape) >= _ENOUGH_CELLS
    factor = max(1, -(-_SMALLEST_SIDE // min(size)))
    fine = (size[0] * factor, size[1] * factor)
    heat = enlarge_map(weights, (cell[0] * factor, cell[1] * factor), fine, smooth)
    heat = np.clip(heat / max(float(weights.max()) if largest is None else largest, 1e-12), 0.0, 1.0)
    picture = np.repeat(np.repeat(_grey(image), factor, axis=0), factor, axis=1) / 255.0
    colours = HEAT(0.08 + 0.92 * heat)[..., :3]
    # More light means more attention, yet the picture stays readable where there is none.
    opacity = 0.45 + 0.3 * heat[..., None]
    mixed = (1 - opacity) * picture[..., None] + opacity * colours
    show_image(axes, np.clip(mixed * 255, 0, 255).astype(np.uint8))
    axes.images[-1].set_extent((0, size[1], size[0], 0))
    axes.set(xlim=(0, size[1]), ylim=(size[0], 0))


def draw_points(axes: Axes, image: np.ndarray, sampling: SamplingPoints, token: int) -> None:
    """Show a darkened picture with the points that one DET token reads.

    The area of a dot is its weight, averaged over the heads (relative to the token's largest); its colour is the
    feature level, see :data:`LEVEL_COLOURS`. Points outside the image, which read zeros, are not drawn.
    """
    show_image(axes, (_grey(image)[..., None] * 0.6).repeat(3, axis=2).astype(np.uint8))
    weights, points = sampling.weights[token], sampling.points[token]
    largest = max(float(weights.max()), 1e-12)
    order = np.argsort(sampling.strides, kind="stable")
    # The coarse levels' dots, often the larger ones, lie below.
    for rank in reversed(range(len(order))):
        level = int(order[rank])
        colour = LEVEL_COLOURS[rank % len(LEVEL_COLOURS)]
        areas = _LARGEST_DOT * weights[:, level].ravel() / largest
        style = {"alpha": 0.85, "linewidths": 0.4, "edgecolors": "#00000099", "clip_on": True, "zorder": 3}
        axes.scatter(*points[:, level].reshape(-1, 2).T, s=areas, color=colour, **style)
    axes.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))


def _grey(image: np.ndarray) -> np.ndarray:
    """Brightness, float (H, W) in 0..255."""
    return image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
