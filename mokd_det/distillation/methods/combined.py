"""Several methods at once, each on its own taps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from detectron2.config import instantiate
from torch import Tensor, nn

from mokd_det.distillation.context import MethodContext
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.taps import Specs, Taps, TapSource, TapValue
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.modeling.query_decoder import QueryDecoder

__all__ = ["Combined"]


class Combined(Method):
    """Runs methods side by side; the term t of part p is named ``p_t``, so that objectives can tell the parts apart.

    Args:
        parts: name → method, or a configuration of one.
        taps: name of a part → the taps it reads; a part that is left out reads all of them.

    Raises:
        ConfigError: no part, a part that is no method, or taps for a part that does not exist.
    """

    def __init__(self, parts: Mapping[str, Method], taps: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__()
        if not parts:
            raise ConfigError("Combined has no parts; give it name → method")
        # Detectron2 instantiates the values of a node, but not those of a mapping in it.
        parts = {str(name): instantiate(part) for name, part in parts.items()}
        for name, part in parts.items():
            if not isinstance(part, Method):
                raise ConfigError(
                    f"part {name!r} of Combined is of type {type(part).__name__}, not a distillation method"
                )
        self.parts = nn.ModuleDict(parts)
        self.part_taps = {name: tuple(listed) for name, listed in (taps or {}).items()}
        unknown = sorted(set(self.part_taps) - set(parts))
        if unknown:
            raise ConfigError(
                f"Combined gives taps to {unknown[0]!r}, but its parts are {', '.join(map(repr, parts))}"
            )

        members = list(parts.values())
        self.needs_teacher = any(part.needs_teacher for part in members)
        self.teacher_after_student = any(part.teacher_after_student for part in members)
        self.teacher_sees_batch = any(part.teacher_sees_batch for part in members)
        self.pairs_queries = any(part.pairs_queries for part in members)
        self.teacher_draws = any(part.teacher_draws for part in members)
        self.asks_decoders = any(part.asks_decoders for part in members)
        self.needs_preparation = any(part.needs_preparation for part in members)
        self.student_only_taps = tuple(
            dict.fromkeys(
                tap for part in members for tap in part.student_only_taps if self._is_student_only(tap)
            )
        )
        self.signed_terms = frozenset(
            f"{name}_{term}" for name, part in parts.items() for term in part.signed_terms
        )

    def _is_student_only(self, tap: str) -> bool:
        """Whether every part that reads the tap reads it from the student alone."""
        return all(
            tap in part.student_only_taps or tap not in self.part_taps.get(name, (tap,))
            for name, part in self.parts.items()
        )

    @contextmanager
    def teacher_pass(self, teacher: nn.Module, student: Taps) -> Iterator[None]:
        """What any of the parts wants, for all of them: there is one run of the teacher."""
        with ExitStack() as stack:
            for name, part in self.parts.items():
                stack.enter_context(part.teacher_pass(teacher, self._own(name, student)))
            yield

    def inspect(self, student: nn.Module, teacher: nn.Module | None) -> None:
        for part in self.parts.values():
            part.inspect(student, teacher)

    def more_taps(self, model: nn.Module, taps: Specs) -> dict[str, TapSource]:
        """Those of every part, as ``<part>/<tap>``."""
        return self._joined(lambda name, part: part.more_taps(model, self._own(name, taps)))

    def ask_teacher(self, decoder: QueryDecoder) -> dict[str, TapValue]:
        """The answers to every part, as ``<part>/<answer>``."""
        return self._joined(lambda name, part: part.ask_teacher(decoder) if part.asks_decoders else {})

    def ask_student(self, decoder: QueryDecoder, teacher: Taps) -> dict[str, TapValue]:
        return self._joined(
            lambda name, part: (
                part.ask_student(decoder, self._own(name, teacher)) if part.asks_decoders else {}
            )
        )

    def check(self, student: Specs, teacher: Specs) -> None:
        """Whether each part's taps are there, and none is for nobody; the parts check the rest."""
        for name, listed in self.part_taps.items():
            missing = [tap for tap in listed if tap not in student]
            if missing:
                raise IncompatibleModelsError(
                    f"part {name!r} of Combined reads the tap {missing[0]!r}, which model.taps does not name; it "
                    f"names {', '.join(map(repr, student))}"
                )
        read = {tap for name in self.parts for tap in self.part_taps.get(name, student)}
        unread = [tap for tap in student if tap not in read and "/" not in tap]
        if unread:
            raise IncompatibleModelsError(f"no part of Combined reads the tap {unread[0]!r}")

    def build_for(self, student: Specs, teacher: Specs) -> None:
        for name, part in self.parts.items():
            part.setup(self._own(name, student), self._own(name, teacher))

    def compare_taps(self, student: Taps, teacher: Taps, context: MethodContext) -> dict[str, Tensor]:
        return self._joined(
            lambda name, part: part(self._own(name, student), self._own(name, teacher), context), "_"
        )

    def prepare(self, batches: Iterable[tuple[dict[str, TapValue], MethodContext]]) -> None:
        """Give the pass over the training set to the parts that need it, in one pass for all where there is one."""
        needing = [name for name, part in self.parts.items() if part.needs_preparation]
        # One part consumes the pass as it comes; several need the teacher's taps kept meanwhile.
        kept = batches if len(needing) == 1 else list(batches)
        for name in needing:
            self.parts[name].prepare((self._own(name, taps), context) for taps, context in kept)

    def after_step(self) -> None:
        for part in self.parts.values():
            part.after_step()

    def no_weight_decay_parameters(self) -> list[nn.Parameter]:
        return [p for part in self.parts.values() for p in part.no_weight_decay_parameters()]

    def diagnostics(self) -> dict[str, float]:
        """``<part>/<number>`` for the numbers of every part."""
        return self._joined(lambda _, part: part.diagnostics())

    def _joined(self, answer: Callable[[str, Any], Mapping[str, Any]], between: str = "/") -> dict[str, Any]:
        """What each part (its name, it) answers, as ``<part>/<key>``."""
        return {
            f"{name}{between}{key}": value
            for name, part in self.parts.items()
            for key, value in answer(name, part).items()
        }

    def _own(self, name: str, taps: Mapping) -> dict:
        # The teacher has no tap that is read from the student alone; "<part>/<tap>" is that part's.
        listed = self.part_taps.get(name, [tap for tap in taps if "/" not in tap])
        own = {tap: taps[tap] for tap in listed if tap in taps}
        prefix = f"{name}/"
        return {**own, **{tap.removeprefix(prefix): v for tap, v in taps.items() if tap.startswith(prefix)}}
