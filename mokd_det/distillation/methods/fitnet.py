"""FitNet's hint (Romero et al., ICLR 2015), trained jointly."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.precision import full_precision
from mokd_det.distillation.taps import Specs, Taps
from mokd_det.errors import ConfigError, IncompatibleModelsError

__all__ = ["FitNet", "HintAdapter"]


class HintAdapter(nn.Module):
    """ReLU(BN(convolution)) from the student's map to the teacher's size and channels.

    With s and t the sides of the maps (or numbers in their ratio, if one is the other's double or equal) the
    convolution is 3 × 3 with stride 2 where s = 2 t, transposed 4 × 4 with stride 2 where 2 s = t, and else 1 + s − t
    wide without padding (1 × 1 for equal sides); a smaller map must be half as large (IncompatibleModelsError).
    """

    def __init__(self, channels: tuple[int, int], sides: tuple[int, int]) -> None:
        super().__init__()
        (n_s, n_t), (s, t) = channels, sides
        if s == 2 * t:
            self.conv: nn.Module = nn.Conv2d(n_s, n_t, 3, stride=2, padding=1)
        elif 2 * s == t:
            self.conv = nn.ConvTranspose2d(n_s, n_t, 4, stride=2, padding=1)
        elif s >= t:
            self.conv = nn.Conv2d(n_s, n_t, 1 + s - t)
        else:
            raise IncompatibleModelsError(
                f"FitNet: a student's map of side {s} cannot be brought to the teacher's {t}; choose another level"
            )
        self.bn = nn.BatchNorm2d(n_t)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, n_s, s, s) → (B, n_t, t, t)."""
        return self.bn(self.conv(maps)).relu()


class FitNet(Method):
    """``hint``: mean square of adapter(student's map) − teacher's map, over all elements, on one level.

    Published weight 100. The original trains in two stages; like RepDistiller this is one.

    Args:
        level: index of the compared map, counted from the shallowest (0) or from the deepest (−1); for the CIFAR
            networks 2 is the published hint, the second stage.
        teacher_level: the same for the teacher; None: ``level``.
        sides: the compared maps' sides (student's, teacher's) in cells. None: their strides tell, which they do where
            the sides are equal or one is twice the other.
    """

    tap_kinds = {"maps": "maps"}

    def __init__(
        self, level: int = 2, teacher_level: int | None = None, sides: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.levels = level, level if teacher_level is None else teacher_level
        self.sides = None if sides is None else (int(sides[0]), int(sides[1]))
        self.adapter: HintAdapter | None = None

    def check(self, student: Specs, teacher: Specs) -> None:
        super().check(student, teacher)
        for who, specs, level in zip(("student", "teacher"), (student, teacher), self.levels, strict=True):
            count = len(specs["maps"].channels)
            if not -count <= level < count:
                raise ConfigError(f"FitNet: level {level} of the {who}'s maps does not exist; it has {count}")

    def build_for(self, student: Specs, teacher: Specs) -> None:
        specs = student["maps"], teacher["maps"]
        n_s, n_t = (spec.channels[level] for spec, level in zip(specs, self.levels, strict=True))
        stride_s, stride_t = (spec.strides[level] for spec, level in zip(specs, self.levels, strict=True))
        ratios = {(1, 1), (1, 2), (2, 1)}
        smaller = max(min(stride_s, stride_t), 1)
        if self.sides is None and (stride_s / smaller, stride_t / smaller) not in ratios:
            raise ConfigError(
                f"FitNet: the compared maps have strides {stride_s} (student) and {stride_t} (teacher), which do not "
                f"tell the adapter's kernel; give both sides in cells, sides=(student's, teacher's)"
            )
        self.adapter = HintAdapter((n_s, n_t), (stride_t, stride_s) if self.sides is None else self.sides)

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        maps_s, maps_t = student["maps"], teacher["maps"]
        # the tap's kind is checked and the adapter built by setup
        assert isinstance(maps_s, list) and isinstance(maps_t, list) and self.adapter is not None
        map_s, map_t = (
            full_precision(maps[i].tensor) for maps, i in zip((maps_s, maps_t), self.levels, strict=True)
        )
        adapted, target = self.adapter(map_s), map_t.detach()
        if adapted.shape != target.shape:
            raise IncompatibleModelsError(
                f"FitNet: the student's map {tuple(map_s.shape)} is adapted to {tuple(adapted.shape)}, but the "
                f"teacher's is {tuple(target.shape)}; give both sides in cells, FitNet(sides=(student's, teacher's))"
            )
        return {"hint": F.mse_loss(adapted, target)}
