"""The contract of a distillation method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from mokd_det.distillation.precision import autocast_off
from mokd_det.distillation.rows import RowPair, check_comparable, pair_rows, row_channels
from mokd_det.distillation.stiefel import StiefelLinear, retract_
from mokd_det.distillation.taps import TapValue
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers.tap_point import TapSpec

__all__ = ["Method"]


class Method(nn.Module, ABC):
    """Compares taps of a student with taps of a teacher: (student taps, teacher taps) → named losses.

    A method learns the models' shapes in :meth:`setup`, where it builds what it trains itself (projections).
    Subclasses write :meth:`build` and :meth:`compare`, and see nothing but pairs of rows; kinds, strides,
    masks and precision are settled here. Its losses carry no weight: weighting is the balancer's.

    Args:
        mask_padding: leave padded cells out of the losses on maps. The published code of VkD and of token
            matching counts them; False reproduces it.
    """

    needs_teacher: ClassVar[bool] = True
    same_channels: bool = False
    """The rows are compared as they are, so student and teacher need equal channels."""

    def __init__(self, mask_padding: bool = True) -> None:
        super().__init__()
        self.mask_padding = mask_padding
        self.tap_names: tuple[str, ...] = ()
        self._is_set_up = False

    def setup(self, student: Mapping[str, TapSpec], teacher: Mapping[str, TapSpec]) -> None:
        """Check that the taps can be compared, and build the method's own modules.

        Args:
            student: name of the tap → what the student delivers.
            teacher: the same names → what the teacher delivers.

        Raises:
            IncompatibleModelsError: two taps that differ in kind, strides, number of tokens or of levels; the
                message gives both shapes.
        """
        if self._is_set_up:
            raise RuntimeError(
                f"{type(self).__name__} is set up already; make a new one for another pair of models"
            )
        if set(student) != set(teacher):
            raise IncompatibleModelsError(
                f"the student is tapped at {sorted(student)}, the teacher at {sorted(teacher)}"
            )
        if self.needs_teacher and not student:
            raise IncompatibleModelsError(f"{type(self).__name__} compares taps, but none is given")
        channels: dict[str, dict[str, tuple[int, int]]] = {}
        for name, spec in student.items():
            check_comparable(name, spec, teacher[name], self.same_channels)
            channels[name] = row_channels(name, spec, teacher[name])
        self.tap_names = tuple(student)
        self.build(channels)
        self._is_set_up = True

    def build(self, channels: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
        """Build modules for the row pairs that will come: tap → key of the pair → (n_s, n_t)."""

    @abstractmethod
    def compare(self, pairs: Mapping[str, list[RowPair]]) -> dict[str, Tensor]:
        """Unweighted, named losses of each tap's row pairs; runs in float32 at least, without autocast."""

    def forward(self, student: Mapping[str, TapValue], teacher: Mapping[str, TapValue]) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            student: name → value of the student's tap.
            teacher: name → value of the teacher's tap; it is detached.

        Returns:
            Name → scalar (float32, or float64 for float64 taps), without weights.
        """
        if not self._is_set_up:
            raise RuntimeError(f"{type(self).__name__}.setup comes before the first forward")
        pairs: dict[str, list[RowPair]] = {}
        for name in self.tap_names:
            pairs[name] = pair_rows(name, student[name], teacher[name], self.mask_padding)
        if not pairs:
            return self.compare(pairs)
        device = next(iter(pairs.values()))[0].student.device
        with autocast_off(device):
            return self.compare(pairs)

    def after_step(self) -> None:
        """Put orthonormal matrices back on their manifold; call it after each optimiser step."""
        stiefel = [m for m in self.modules() if isinstance(m, StiefelLinear)]
        retract_(m.weight for m in stiefel if m.trainable)

    def no_weight_decay_parameters(self) -> list[nn.Parameter]:
        """Trainable parameters that decay would harm: orthonormal matrices, gains and biases."""
        chosen = {id(m.weight) for m in self.modules() if isinstance(m, StiefelLinear)}
        return [p for p in self.parameters() if p.requires_grad and (p.ndim < 2 or id(p) in chosen)]

    def diagnostics(self) -> dict[str, float]:
        """Numbers about the method's own modules, to log now and then; each may wait for the device."""
        return {}
