"""The meta-architecture that trains a student beside a frozen teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from mokd_det.checkpoint import load_into
from mokd_det.contract import PreparedBatch, TrainingTask, as_task
from mokd_det.distillation.context import batch_context
from mokd_det.distillation.map_alignment import align_maps, image_sizes, stretched_objects
from mokd_det.distillation.methods.base import Method
from mokd_det.distillation.query_matching import (
    PREDICTION_TAPS,
    HungarianTokenMatching,
    TokenMatchingChoice,
    matched_spec,
    parse_token_matching,
    take_queries,
)
from mokd_det.distillation.requirements import known_class_names, require_query_decoder
from mokd_det.distillation.side_stream import SideStream, SideWork
from mokd_det.distillation.tap_pairing import CommonTaps, TapPairing
from mokd_det.distillation.taps import Specs, TapRecorder, Taps, TapSource, TapSpelling, TapValue, tap_specs
from mokd_det.distillation.teacher_cache import TeacherCache
from mokd_det.errors import ConfigError, IncompatibleModelsError, require_choice
from mokd_det.modeling.query_decoder import QueryDecoder

__all__ = ["DEFAULT_TAPS", "DistillationBatch", "Distiller"]

DEFAULT_TAPS = {"patch": "patch", "neck": "neck", "head": "head"}
"""The taps that a ViDT offers."""

TeacherPrecision = Literal["as_student", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class DistillationBatch(PreparedBatch):
    """A batch with what the teacher says about it.

    ``teacher_taps`` are empty until the student has run, for a method whose teacher sees what the student attends to
    (``teacher_after_student``).

    Attributes:
        teacher_predictions: "logits" and "boxes" of the teacher's queries, where tokens are matched by them.
        teacher_answers: what the teacher's decoder answered to a method that ``asks_decoders``.
        side_work: the teacher's work on a CUDA stream of its own, which must be waited for; None: there is none.
    """

    teacher_predictions: dict[str, TapValue] = field(default_factory=dict)
    teacher_answers: dict[str, TapValue] = field(default_factory=dict)
    side_work: SideWork | None = None

    @property
    def side_events(self) -> tuple[torch.cuda.Event, torch.cuda.Event] | None:
        return None if self.side_work is None else self.side_work.events


def _for_model(taps: Mapping[str, Any], who: str) -> dict[str, TapSource]:
    """The taps of one model, from a mapping in which a tap may be spelled for both models or for each."""
    sources = {}
    for name, value in taps.items():
        if isinstance(value, Mapping) and {"student", "teacher"} & set(value):
            if set(value) != {"student", "teacher"}:
                raise ConfigError(
                    f"tap {name!r} needs a student and a teacher and nothing else: {dict(value)}"
                )
            value = value[who]
        sources[name] = TapSource.parse(value)
    return sources


@META_ARCH_REGISTRY.register()
class Distiller(TrainingTask):
    """A student, a frozen teacher and the method that compares them, as one Detectron2 model.

    In training the student runs its own training forward and the teacher its inference on the same batch; the
    result is the student's losses and ``loss_distill_<term>`` for each term of the method, none of them
    weighted here. In evaluation it is the student.

    The teacher is no submodule: it is in no state_dict, no optimiser, no data-parallel bucket, and ``train()`` leaves
    it in eval mode; only moves to a device or a dtype reach it. ``student.state_dict()`` is that of a student alone.

    Args:
        student: a module whose training forward takes the loader's batch and returns a dict of losses.
        teacher: a module that takes the same batch in eval mode; None for a method that needs none.
        method: its modules are built here, for the taps' shapes.
        taps: name → where it is found in both models (a module path, or a mapping; see
            :mod:`mokd_det.distillation.taps`), or ``{"student": …, "teacher": …}`` where they differ. Those in the
            method's ``student_only_taps`` are looked for in the student alone.
        teacher_checkpoint: the teacher's weights, ours or published (see
            :func:`mokd_det.checkpoint.load_into`); "": they stay as they are.
        ignore_teacher_keys: patterns of tensors in that file that the teacher may lack.
        token_matching: which query of the teacher a student's is compared with: "index", the one of the same
            index; "hungarian" (or a :class:`~mokd_det.distillation.query_matching.HungarianTokenMatching` with
            costs of its own), the one that predicts the most similar object, whatever the numbers of queries.
        teacher_precision: of the teacher's forward: "as_student" (that of the training), "float32", or mixed
            "bfloat16" or "float16", whatever the student trains in. Its weights stay as they are.
        teacher_cache: keeps what the teacher says about images that come back unchanged, which spares its forward.
        teacher_stream: run the teacher on a CUDA stream of its own, beside the student's forward. No effect on a CPU.
        tap_pairing: maps and decoder levels that the models do not both have are refused ("equal"), or left out and
            paired by depth ("common", see :mod:`mokd_det.distillation.tap_pairing`).
        prediction_taps: where that matching finds "logits" (B, N, classes) and "boxes" (B, N, 4), spelled as
            ``taps`` are; None: as a ViDT offers them.

    Maps of equal stride that differ in size, because the models pad differently, are cropped to the cells that both
    have (:func:`mokd_det.distillation.map_alignment.align_maps`).

    Raises:
        IncompatibleModelsError: a tap that one of the models lacks, or that cannot be compared.
        CheckpointError: the teacher's file is missing, unsafe or of another model.
        ConfigError: a tap that is spelled wrongly, no teacher for a method that needs one, or a cache or a stream for a
            teacher that cannot have it.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        method: Method,
        taps: Mapping[str, TapSpelling] | None = None,
        teacher_checkpoint: str = "",
        ignore_teacher_keys: Sequence[str] = (),
        token_matching: TokenMatchingChoice | HungarianTokenMatching = "index",
        prediction_taps: Mapping[str, TapSpelling] | None = None,
        teacher_precision: TeacherPrecision = "as_student",
        teacher_cache: TeacherCache | None = None,
        teacher_stream: bool = False,
        tap_pairing: TapPairing = "equal",
    ) -> None:
        super().__init__()
        require_choice("teacher_precision", teacher_precision, TeacherPrecision)
        require_choice("tap_pairing", tap_pairing, TapPairing)
        name = type(method).__name__
        self._teacher_precision = teacher_precision
        taps = DEFAULT_TAPS if taps is None else taps
        self._matching = parse_token_matching(token_matching)
        if prediction_taps is not None and (
            self._matching is None or set(prediction_taps) != set(PREDICTION_TAPS)
        ):
            raise ConfigError(
                f"prediction_taps gives {sorted(prediction_taps)}; it needs 'logits' and 'boxes', and is for "
                f"token_matching='hungarian' only"
            )
        if self._matching is not None and method.pairs_queries:
            raise ConfigError(
                f"token_matching='hungarian' reorders queries, which {name} pairs itself; use token_matching='index'"
            )
        if not method.needs_teacher:
            taps = {tap: value for tap, value in taps.items() if tap in method.student_only_taps}
            self._matching = None
        elif teacher is None:
            raise ConfigError(f"{name} needs a teacher, but teacher is None")
        if teacher_cache is not None:
            _check_cacheable(method, teacher)
        if teacher_stream and method.teacher_after_student:
            raise ConfigError(
                f"teacher_stream=True runs the teacher beside the student, but with {name} it waits for the student; "
                "use teacher_stream=False"
            )
        if teacher is student:
            raise ConfigError("student and teacher are one and the same module; build two")
        self.student = student
        self.method = method
        self._student_sources = _for_model(taps, "student")
        shared = {tap: value for tap, value in taps.items() if tap not in method.student_only_taps}
        self._teacher_sources = _for_model(shared, "teacher")
        predictions = {} if self._matching is None else prediction_taps or PREDICTION_TAPS
        self._student_predictions = _for_model(predictions, "student")
        self._teacher_predictions = _for_model(predictions, "teacher")
        # A tuple hides the teacher from nn.Module's bookkeeping of submodules.
        self._teacher = (teacher,)
        self._cache = teacher_cache
        self._side_stream = SideStream() if teacher_stream else None
        self._student_taps: list[Tensor] = []
        if teacher is not None:
            if teacher_checkpoint:
                load_into(
                    teacher,
                    teacher_checkpoint,
                    allow_unexpected=ignore_teacher_keys,
                    allow_classifier=False,
                    what="teacher checkpoint",
                )
            teacher.eval().requires_grad_(False)
            teacher_specs = _with_more_taps(method, teacher, self._teacher_sources)
        elif teacher_checkpoint:
            raise ConfigError(f"teacher_checkpoint={teacher_checkpoint!r} is given, but teacher is None")
        else:
            teacher_specs = {}
        student_specs = _with_more_taps(method, student, self._student_sources)
        if self._matching is not None and teacher is not None:
            numbers = self._matching.check(
                tap_specs(student, self._student_predictions),
                tap_specs(teacher, self._teacher_predictions),
                (known_class_names(student), known_class_names(teacher)),
            )
            student_specs, teacher_specs = (
                {tap: matched_spec(tap, spec, number, min(numbers)) for tap, spec in specs.items()}
                for specs, number in zip((student_specs, teacher_specs), numbers, strict=True)
            )
        self._common = CommonTaps(student_specs, teacher_specs) if tap_pairing == "common" else None
        if self._common is not None:
            student_specs, teacher_specs = self._common.student, self._common.teacher
        method.inspect(student, teacher)
        method.setup(student_specs, teacher_specs)
        method.to(self._device())

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher, in eval mode."""
        return self._teacher[0]

    @property
    def tap_sources(self) -> dict[str, Mapping[str, TapSource]]:
        """Where the taps are found: "student" and "teacher" → name → place."""
        return {"student": self._student_sources, "teacher": self._teacher_sources}

    @property
    def eval_model(self) -> nn.Module:
        return self.student

    def checkpoint_parts(self) -> dict[str, nn.Module]:
        return {"method": self.method}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        super()._apply(fn, recurse)
        if self.teacher is not None:
            self.teacher._apply(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Tensors with a graph can be neither copied nor pickled.
        return {**self.__dict__, "_student_taps": []}

    @torch.no_grad()
    def prepare_batch(self, batched_inputs: Any) -> DistillationBatch:
        """Run the teacher, once for all forwards of this batch, after what the student's own ``prepare_batch`` does.

        It runs in inference mode; the taps are copied out of it, so that they may enter the student's graph (learned
        teacher projections).

        Raises:
            CacheError: the teacher's cache cannot serve this batch.
        """
        return self._prepare(batched_inputs, self._cache)

    @torch.no_grad()
    def _prepare(self, batched_inputs: Any, cache: TeacherCache | None) -> DistillationBatch:
        batch = DistillationBatch(as_task(self.student).prepare_batch(batched_inputs))
        if self.teacher is None or not self.method.needs_teacher or self.method.teacher_after_student:
            return batch
        if cache is not None and not cache.is_open:
            self.open_teacher_cache()
        if self._side_stream is None:
            return self._with_teacher(batch, {}, cache)
        with self._side_stream.work(self._device()) as work:
            self._with_teacher(batch, {}, cache)
        if work is None:
            return batch
        for said in (batch.teacher_taps, batch.teacher_predictions, batch.teacher_answers):
            work.hand_over(_tensors(said))
        return replace(batch, side_work=work)

    @torch.no_grad()
    def _with_teacher(
        self, batch: DistillationBatch, student_taps: Taps, cache: TeacherCache | None = None
    ) -> DistillationBatch:
        """The same batch with what the teacher says about it, which it keeps for its other forwards."""

        def run(inputs: Any) -> dict[str, TapValue]:
            return self._run_teacher(inputs, student_taps)

        if cache is None:
            said = run(batch.inputs)
        else:
            dtype = torch.promote_types(self._reference().dtype, torch.float32)
            said = cache.taps(batch.inputs, run, self._device(), dtype)
        for name, value in said.items():
            kind, _, tap = name.partition("/")
            parts = {"taps": batch.teacher_taps, "predictions": batch.teacher_predictions}
            parts.get(kind, batch.teacher_answers)[tap] = value
        return batch

    def _run_teacher(self, inputs: Any, student_taps: Taps) -> dict[str, TapValue]:
        """One forward: "taps/<name>", "predictions/<name>" and "answers/<name>" → value."""
        teacher = self.teacher
        assert teacher is not None  # a method that needs none never comes here
        with (
            torch.inference_mode(),
            self._teacher_autocast(),
            self.method.teacher_pass(teacher, student_taps),
            TapRecorder(teacher, self._teacher_sources) as taps,
            TapRecorder(teacher, self._teacher_predictions) as predictions,
        ):
            with self._decoder(teacher) as decoder:
                teacher(inputs)
            answers = {} if decoder is None else self.method.ask_teacher(decoder)
        said = {"taps": taps.values, "predictions": predictions.values, "answers": answers}
        return {f"{kind}/{name}": _copied(v) for kind, values in said.items() for name, v in values.items()}

    def _decoder(self, model: nn.Module) -> AbstractContextManager[QueryDecoder | None]:
        """The recorder of a model's decoder for one forward, if the method asks decoders."""
        if not self.method.asks_decoders:
            return nullcontext()
        return require_query_decoder(type(self.method).__name__, "model", model)

    def _device(self) -> torch.device:
        return self._reference().device

    def _reference(self) -> Tensor:
        """Of the student's device and type."""
        return next(self.student.parameters(), torch.empty(0))

    @property
    def has_teacher_cache(self) -> bool:
        return self._cache is not None

    def open_teacher_cache(self, facts: Mapping[str, str] | None = None) -> None:
        """Take the teacher's cache into use, in the autocast context that the training has.

        Args:
            facts: what the images and the teacher come from, by which a cache made for something else is known
                (CacheError); the teacher's weights, precision and taps are added here.
        """
        assert self._cache is not None and self.teacher is not None  # callers ask has_teacher_cache
        with self._teacher_autocast():
            precision = _computing_precision(self._device().type, self.teacher)
        own = {
            "the teacher's class": type(self.teacher).__qualname__,
            "the digest of the teacher's weights": str(self.teacher_digest()),
            "the precision of the teacher's forward": precision,
        }
        of_kind = {"taps": self._teacher_sources, "prediction_taps": self._teacher_predictions}
        for kind, sources in of_kind.items():
            own.update({f"model.{kind}.{name}": str(source) for name, source in sources.items()})
        self._cache.open({**(facts or {}), **own})

    def _teacher_autocast(self) -> AbstractContextManager[Any]:
        if self._teacher_precision == "as_student":
            return nullcontext()
        kind = self._device().type
        if self._teacher_precision == "float32":
            return torch.autocast(kind, enabled=False)
        return torch.autocast(kind, dtype=getattr(torch, self._teacher_precision))

    def forward(self, batch: Any) -> Any:
        """Losses in training, the student's predictions in evaluation.

        Args:
            batch: the loader's batch, or what :meth:`prepare_batch` made of it.

        Returns:
            Training: dict of scalars, the student's and ``loss_distill_<term>``; evaluation: the student's output.

        Raises:
            IncompatibleModelsError: the student's training forward returned no dict, or uses a name of ours.
        """
        self._student_taps = []
        if not self.training:
            return self.student(batch.inputs if isinstance(batch, DistillationBatch) else batch)
        prepared = batch if isinstance(batch, DistillationBatch) else self.prepare_batch(batch)
        try:
            with (
                TapRecorder(self.student, self._student_sources) as recorder,
                TapRecorder(self.student, self._student_predictions) as predictions,
                self._decoder(self.student) as decoder,
            ):
                losses = self.student(prepared.inputs)
        finally:
            # Also if it failed: whoever looks for the reason reads the teacher's taps.
            if prepared.side_work is not None:
                prepared.side_work.wait()
        if not isinstance(losses, Mapping):
            raise IncompatibleModelsError(
                f"the student ({type(self.student).__name__}) returned a {type(losses).__name__} in "
                f"training, not a dict of losses"
            )
        student_taps = recorder.values
        self._student_taps = [tensor for tensor in _tensors(student_taps) if tensor.requires_grad]
        if self.method.teacher_after_student and not prepared.teacher_taps:
            self._with_teacher(prepared, student_taps)
        teacher_taps = prepared.teacher_taps
        if self._matching is not None:
            queries = self._matching.assign(predictions.values, prepared.teacher_predictions)
            student_taps, teacher_taps = map(take_queries, (student_taps, teacher_taps), queries)
        if self._common is not None:
            student_taps = self._common.of_student(student_taps)
            teacher_taps = self._common.of_teacher(teacher_taps)
        sizes = image_sizes(prepared.inputs)
        if sizes is not None:
            student_taps, teacher_taps = align_maps(student_taps, teacher_taps, sizes)
        context = batch_context(prepared.inputs)
        if context.objects is not None:
            context = replace(context, objects=stretched_objects(context.objects, student_taps))
        if decoder is not None:
            answers = self.method.ask_student(decoder, prepared.teacher_answers)
            student_taps = {**student_taps, **answers}
            teacher_taps = {**teacher_taps, **prepared.teacher_answers}
        compared = self.method(student_taps, teacher_taps, context)
        terms = {f"loss_distill_{name}": value for name, value in compared.items()}
        taken = sorted(set(terms) & set(losses))
        if taken:
            raise IncompatibleModelsError(
                f"the student's loss {taken[0]!r} has the name of a distillation loss"
            )
        return {**losses, **terms}

    def private_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.method.parameters() if p.requires_grad]

    def no_weight_decay_parameters(self) -> list[nn.Parameter]:
        return self.method.no_weight_decay_parameters()

    def last_student_taps(self) -> list[Tensor]:
        """The tap tensors, with their graph, of the latest training forward; the next one releases them."""
        return list(self._student_taps)

    @property
    def signed_losses(self) -> tuple[str, ...]:
        return tuple(f"loss_distill_{term}" for term in sorted(self.method.signed_terms))

    @property
    def needs_preparation(self) -> bool:
        return self.method.needs_preparation

    def prepare_method(self, batches: Iterable[Any]) -> None:
        """Show the method one pass over the training set (every image once): the teacher's taps of every image."""
        # Without the cache: these batches are no views that the training shows.
        prepared = (self._prepare(batch, None) for batch in batches)
        if self.method.teacher_after_student:
            prepared = (self._with_teacher(batch, {}) for batch in prepared)
        paired = (lambda taps: taps) if self._common is None else self._common.of_teacher
        self.method.prepare((paired(batch.teacher_taps), batch_context(batch.inputs)) for batch in prepared)

    def after_step(self) -> None:
        self.method.after_step()

    def teacher_digest(self) -> str | None:
        if self.teacher is None:
            return None
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.teacher.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def diagnostics(self) -> dict[str, float]:
        """The method's and the cache's numbers under ``distill/``, for a hook to log every so many iterations."""
        numbers = self.method.diagnostics()
        if self._cache is not None:
            numbers = {**numbers, **self._cache.diagnostics()}
        return {f"distill/{name}": value for name, value in numbers.items()}


def _check_cacheable(method: Method, teacher: nn.Module | None) -> None:
    name = type(method).__name__
    if teacher is None or not method.needs_teacher:
        raise ConfigError(f"model.teacher_cache is given, but {name} runs no teacher; remove it")
    reason = ""
    if method.teacher_after_student:
        reason = "its teacher sees what the student attends to, which changes in every step; remove it"
    elif method.teacher_sees_batch:
        reason = (
            "its teacher normalises by the batch, so what it says about an image changes with the others; remove it, "
            "or the method's batch_statistics_teacher"
        )
    elif method.teacher_draws:
        reason = (
            "it asks the teacher at random points, new ones in every step; remove it, or the random points"
        )
    if reason:
        raise ConfigError(f"model.teacher_cache cannot be used with {name}: {reason}")


def _with_more_taps(method: Method, model: nn.Module, sources: dict[str, TapSource]) -> Specs:
    """What all taps of a model deliver; those that the method finds itself are added to ``sources``."""
    more = method.more_taps(model, tap_specs(model, sources))
    taken = sorted(set(more) & set(sources))
    if taken:
        raise ConfigError(
            f"{type(method).__name__} finds the tap {taken[0]!r} itself; remove it from model.taps"
        )
    sources.update(more)
    return tap_specs(model, sources)


def _computing_precision(kind: str, model: nn.Module) -> str:
    """Type of a model's parameters and, if it is on, autocast's."""
    parameters = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return " ".join(parameters) + ("" if autocast is None else f", autocast {autocast}".replace("torch.", ""))


def _copied(value: TapValue) -> TapValue:
    if not isinstance(value, list):
        return value.clone()
    masks = (None if level.padding_mask is None else level.padding_mask.clone() for level in value)
    return [
        replace(level, tensor=level.tensor.clone(), padding_mask=mask)
        for level, mask in zip(value, masks, strict=True)
    ]


def _tensors(taps: Taps) -> list[Tensor]:
    """All tensors of the taps, masks included."""
    tensors: list[Tensor] = []
    for value in taps.values():
        if not isinstance(value, list):
            tensors.append(value)
            continue
        for level in value:
            tensors += [level.tensor] if level.padding_mask is None else [level.tensor, level.padding_mask]
    return tensors
