"""The contract of a distillation method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.precision import autocast_off
from mokd_det.distillation.requirements import TapKind, known_class_names, require_equal_classes, require_kind
from mokd_det.distillation.rows import RowPair, check_comparable, pair_rows, row_channels
from mokd_det.distillation.stiefel import StiefelLinear, retract_
from mokd_det.distillation.taps import Specs, Taps, TapSource, TapValue
from mokd_det.errors import IncompatibleModelsError
from mokd_det.layers.tap_point import TapSpec
from mokd_det.modeling.query_decoder import QueryDecoder

__all__ = ["ClassWiseMethod", "Method"]


class Method(nn.Module):
    """Compares taps of a student with taps of a teacher: (student taps, teacher taps) → named losses.

    A method learns the models' shapes in :meth:`setup`, where it builds what it trains itself (projections).
    Its losses carry no weight: weighting is the objectives' and the balancer's.

    Most subclasses write :meth:`build` and :meth:`compare_pair` (or :meth:`compare`) and see nothing but pairs of rows;
    kinds, strides, masks and precision are settled here. One that compares something else (whole maps, labels) writes
    :meth:`compare_taps` instead, and :meth:`build_for`; its taps' kinds are named in :attr:`tap_kinds`.

    Args:
        mask_padding: leave padded cells out of the losses on maps. The published code of VkD and of token
            matching counts them; False reproduces it.

    Raises:
        TypeError: the class defines no comparison, or wants a preparation that it does not define.
    """

    needs_teacher: bool = True
    """The method reads the teacher's taps."""
    same_channels: bool = False
    """The rows are compared as they are, so student and teacher need equal channels."""
    required_taps: tuple[str, ...] = ()
    """Names of the taps that the method reads, besides those of :attr:`tap_kinds`; (): whatever is given."""
    tap_kinds: Mapping[str, TapKind] = {}
    """Taps that the method reads, and what they must deliver."""
    student_only_taps: tuple[str, ...] = ()
    """Names of taps that are read from the student alone."""
    teacher_after_student: bool = False
    """The teacher runs within the student's forward, after it, since :meth:`teacher_pass` depends on it."""
    teacher_sees_batch: bool = False
    """:meth:`teacher_pass` makes the teacher's outputs for an image depend on the others of its batch."""
    pairs_queries: bool = False
    """The method decides itself which queries are compared, so the Distiller's ``token_matching`` is refused."""
    teacher_draws: bool = False
    """:meth:`ask_teacher` draws random numbers, so that its answers about an image change from step to step."""
    signed_terms: frozenset[str] = frozenset()
    """Terms that can be 0 or negative by construction; a balancer that takes logarithms refuses them."""
    asks_decoders: bool = False
    """The method runs the models' decoders with queries of its choice: :meth:`ask_teacher`, :meth:`ask_student`."""
    needs_preparation: bool = False
    """The method wants :meth:`prepare` before the first step."""

    def __init__(self, mask_padding: bool = True) -> None:
        super().__init__()
        self._check_overrides()
        self.required_taps = tuple(dict.fromkeys((*self.required_taps, *self.tap_kinds)))
        self.mask_padding = mask_padding
        self.tap_names: tuple[str, ...] = ()
        self._is_set_up = False

    def _check_overrides(self) -> None:
        kind = type(self)
        comparisons = ("compare_pair", "compare", "compare_taps")
        if all(getattr(kind, name) is getattr(Method, name) for name in comparisons):
            raise TypeError(
                f"{kind.__name__} says nowhere how taps are compared: it must define compare_pair(pair), "
                f"compare(pairs), or compare_taps(student, teacher, context)"
            )
        if kind.needs_preparation and kind.prepare is Method.prepare:
            raise TypeError(f"{kind.__name__} has needs_preparation=True, so it must define prepare(batches)")

    def setup(self, student: Specs, teacher: Specs) -> None:
        """Check that the taps can be compared, and build the method's own modules.

        Args:
            student, teacher: name of the tap → what it delivers; the same names for both.

        Raises:
            IncompatibleModelsError: a tap is missing, or two taps differ in kind, strides, number of tokens or of
                levels; the message gives both shapes.
        """
        if self._is_set_up:
            raise RuntimeError(
                f"{type(self).__name__} is set up already; make a new one for another pair of models"
            )
        if set(student) - set(self.student_only_taps) != set(teacher) - set(self.student_only_taps):
            raise IncompatibleModelsError(
                f"the student is tapped at {sorted(student)}, the teacher at {sorted(teacher)}"
            )
        if self.needs_teacher and not student:
            raise IncompatibleModelsError(f"{type(self).__name__} compares taps, but none is given")
        missing = [name for name in self.required_taps if name not in student]
        if missing:
            raise IncompatibleModelsError(
                f"{type(self).__name__} reads the tap {missing[0]!r}, which model.taps does not name; it names "
                f"{', '.join(map(repr, student)) or 'none'}"
            )
        self.check(student, teacher)
        self.tap_names = tuple(student)
        self.build_for(student, teacher)
        self._is_set_up = True

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        """See the models themselves, before :meth:`setup`, for what taps cannot tell; nothing may be kept trainable.

        ``teacher`` is the frozen one; None where the method needs none.
        """

    def more_taps(self, model: nn.Module, taps: Specs) -> dict[str, TapSource]:
        """Taps that the method finds itself in a model, beside what the configuration's deliver in it: name → where."""
        return {}

    def ask_teacher(self, decoder: QueryDecoder) -> dict[str, TapValue]:
        """Questions to the teacher's decoder, after each run of the teacher: name → answer.

        Answers are kept beside the teacher's taps, for all forwards of the batch, and :meth:`compare_taps` gets them
        among these. Called with ``asks_decoders``, without a graph.
        """
        return {}

    def ask_student(self, decoder: QueryDecoder, teacher: Taps) -> dict[str, TapValue]:
        """The same to the student's, in each forward of it, with its graph; ``teacher``: the teacher's answers."""
        return {}

    def teacher_pass(self, teacher: nn.Module, student: Taps) -> AbstractContextManager[None]:
        """What surrounds each run of the teacher, where that differs from its plain inference.

        ``student``: the student's taps of the batch for a method with ``teacher_after_student``; else, and in the pass
        of :meth:`prepare`, empty.
        """
        return nullcontext()

    def check(self, student: Specs, teacher: Specs) -> None:
        """Whether the taps can be compared: of the :attr:`tap_kinds`, or row by row where the method names none.

        Raises:
            IncompatibleModelsError: they cannot; the message gives both shapes.
        """
        for name, kind in self.tap_kinds.items():
            require_kind(
                type(self).__name__, name, kind, *(specs for specs in (student, teacher) if name in specs)
            )
        if not self.tap_kinds:
            for name, spec in teacher.items():
                check_comparable(name, student[name], spec, self.same_channels)

    def build_for(self, student: Specs, teacher: Specs) -> None:
        """Build the method's modules for these taps."""
        if type(self).build is not Method.build:  # of taps that are not compared by rows the maps may differ
            self.build({name: row_channels(name, student[name], spec) for name, spec in teacher.items()})

    def build(self, channels: Mapping[str, Mapping[str, tuple[int, int]]]) -> None:
        """Build modules for the row pairs that will come: tap → key of the pair → (n_s, n_t)."""

    def compare_pair(self, pair: RowPair) -> Tensor:
        """The loss of one tap and map level, a scalar; runs in float32 at least, without autocast.

        Raises:
            NotImplementedError: the method defines :meth:`compare` or :meth:`compare_taps` in its place.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no loss of a single pair; call compare_taps, or define compare_pair"
        )

    def compare(self, pairs: Mapping[str, list[RowPair]]) -> dict[str, Tensor]:
        """Unweighted, named losses: one term per tap, the sum of :meth:`compare_pair` over its map levels."""
        return {
            name: torch.stack([self.compare_pair(pair) for pair in of_tap]).sum()
            for name, of_tap in pairs.items()
        }

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        """Unweighted, named losses of the taps; runs without autocast. See :meth:`forward`."""
        return self.compare(
            {
                name: pair_rows(name, student[name], teacher[name], self.mask_padding)
                for name in self.tap_names
            }
        )

    def forward(
        self, student: Taps, teacher: Taps, context: MethodContext | None = None
    ) -> dict[str, Tensor]:
        """Losses of one batch: name → scalar (float32, or float64 for float64 taps), without weights.

        Args:
            student, teacher: name → value of the tap; no gradient reaches the teacher's.
            context: what is known of the batch besides; None: nothing.
        """
        if not self._is_set_up:
            raise RuntimeError(f"{type(self).__name__}.setup comes before the first forward")
        context = MethodContext() if context is None else context
        if not student:
            return self.compare_taps(student, teacher, context)
        value = next(iter(student.values()))
        with autocast_off((value[0].tensor if isinstance(value, list) else value).device):
            return self.compare_taps(student, teacher, context)

    def prepare(self, batches: Iterable[tuple[dict[str, TapValue], MethodContext]]) -> None:
        """Learn from one pass over the training set what the losses need of it; called once, before the first step.

        Results belong into buffers, so that they are in the checkpoint and a resumed run need not repeat it.

        Args:
            batches: the teacher's taps and the context of each batch, every image once.
        """
        raise NotImplementedError(
            f"{type(self).__name__} needs no preparation; ask needs_preparation before prepare"
        )

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


class ClassWiseMethod(Method):
    """A method that compares logits class by class, so that both models need the same classes."""

    class_names: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)
    """The student's and the teacher's, as far as they are known."""

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        self.class_names = known_class_names(student), known_class_names(teacher)

    def require_equal_classes(self, student: TapSpec, teacher: TapSpec) -> int:
        """The number of classes of both models' logits; see :func:`.requirements.require_equal_classes`."""
        return require_equal_classes(type(self).__name__, student, teacher, self.class_names)
