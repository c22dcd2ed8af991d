"""A hundred classes of 32-pixel images that need no files: ten hues times ten patterns, for tests and trials."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np

from mokd_det.classification.dataset import ArrayDataset
from mokd_det.classification.subset import check_split
from mokd_det.errors import ConfigError

__all__ = ["SyntheticShapes"]

SPLITS = ("train", "val", "test")
HUES = ("red", "orange", "lime", "green", "emerald", "cyan", "blue", "violet", "magenta", "pink")
SIDE = 32

Field = np.ndarray


def _grating(phase: Field) -> Field:
    return np.sin(phase) > 0


# Masks (N, 32, 32) from coordinates relative to the pattern's centre in units of its size, (N, 32, 32) each.
PATTERNS: dict[str, Callable[[Field, Field], Field]] = {
    "rows": lambda x, y: _grating(5 * y),
    "columns": lambda x, y: _grating(5 * x),
    "diagonals": lambda x, y: _grating(4 * (x + y)),
    "checks": lambda x, y: _grating(4 * x) ^ _grating(4 * y),
    "rings": lambda x, y: _grating(7 * np.hypot(x, y)),
    "disc": lambda x, y: np.hypot(x, y) < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.9,
    "diamond": lambda x, y: abs(x) + abs(y) < 1.2,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1.2),
    "triangle": lambda x, y: (y < 0.8) & (y > 2 * abs(x) - 1.0),
}


class SyntheticShapes(ArrayDataset):
    """100 balanced classes in the splits "train", "val" and "test": class 10·h + p shows pattern p in hue h, moved,
    scaled and noisy."""

    def __init__(self, split: str, per_class: int = 10, seed: int = 0, noise: float = 20.0) -> None:
        """
        Args:
            seed: non-negative; with the other arguments it decides every pixel.
            noise: standard deviation of the pixels' noise, of 255.

        Raises:
            ConfigError: an unknown split, or a number out of range.
        """
        check_split(split, SPLITS, "the data set of synthetic shapes")
        if per_class < 1 or seed < 0 or noise < 0:
            raise ConfigError(
                f"synthetic shapes: per_class={per_class} must be 1 or more, seed={seed} and noise={noise} 0 or more"
            )
        generator = np.random.default_rng([seed, SPLITS.index(split)])
        labels = np.repeat(np.arange(100), per_class)
        super().__init__(
            f"synthetic shapes ({split})",
            [f"{hue} {pattern}" for hue in HUES for pattern in PATTERNS],
            labels,
            _paint(_draw(labels, generator), labels, generator, noise),
        )


def _draw(labels: np.ndarray, generator: np.random.Generator) -> Field:
    """Where each image shows its pattern, (N, 32, 32) bool."""
    centre_x, centre_y = generator.uniform(11, 21, (2, len(labels), 1, 1))
    size = generator.uniform(7, 11, (len(labels), 1, 1))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    x, y = (columns - centre_x) / size, (rows - centre_y) / size
    mask = np.empty((len(labels), SIDE, SIDE), bool)
    for number, pattern in enumerate(PATTERNS.values()):
        chosen = labels % len(PATTERNS) == number
        mask[chosen] = pattern(x[chosen], y[chosen])
    return mask


def _paint(mask: Field, labels: np.ndarray, generator: np.random.Generator, noise: float) -> np.ndarray:
    """The masks in the classes' hues on grey, (N, 32, 32, 3) uint8."""
    hues = (labels // len(PATTERNS) + generator.uniform(-0.25, 0.25, len(labels))) / len(HUES)
    colours = 255 * np.array([colorsys.hsv_to_rgb(hue % 1, 0.8, 0.9) for hue in hues])
    background = generator.uniform(20, 100, (len(labels), 1, 1, 1))
    images = np.where(mask[..., None], colours[:, None, None], background)
    images += noise * generator.standard_normal(images.shape)
    return np.rint(images.clip(0, 255)).astype(np.uint8)
