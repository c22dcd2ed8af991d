"""What a method requires of the taps, the label sets and the batch, each with one clear message."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from mokd_det.contract import as_task
from mokd_det.distillation.context import MethodContext, Objects
from mokd_det.distillation.rows import describe
from mokd_det.distillation.taps import Specs
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import TapKind, TapSpec
from mokd_det.modeling.query_decoder import HasQueryDecoder, QueryDecoder

__all__ = [
    "hard_targets",
    "known_class_names",
    "require_equal_classes",
    "require_kind",
    "require_known",
    "require_objects",
    "require_positive",
    "require_query_decoder",
    "require_several",
]

_PURPOSE = {
    "labels": "the images' classes",
    "targets": "what the task loss compares with",
    "indices": "the images' positions in the training set",
    "negatives": "positions of images of other classes; set the training loader's number of negatives",
}


def require_kind(method: str, name: str, kind: TapKind, *specs: Specs) -> None:
    """Raise an IncompatibleModelsError unless the tap is of this kind in all ``specs``, the student's first."""
    if any(taps[name].kind != kind for taps in specs):
        found = ", ".join(
            f"{who} {describe(taps[name])}" for who, taps in zip(("student", "teacher"), specs, strict=False)
        )
        raise IncompatibleModelsError(f"{method} reads {kind} at the tap {name!r}, but found: {found}")


def known_class_names(model: nn.Module | None) -> tuple[str, ...] | None:
    """The names of a model's classes, where it carries them (``class_names``)."""
    names = None if model is None else as_task(model).class_names
    return None if names is None else tuple(str(name) for name in names)


def require_equal_classes(
    method: str,
    student: TapSpec,
    teacher: TapSpec,
    names: Sequence[tuple[str, ...] | None] = (None, None),
) -> int:
    """The number of classes that both models' logits have; ``names``: of both, as far as they are known.

    Raises:
        IncompatibleModelsError: different numbers of classes, or names that differ; the message has both counts.
    """
    classes_s, classes_t = student.channels[0], teacher.channels[0]
    known = [found if found is not None and len(found) == n else None
             for found, n in zip(names, (classes_s, classes_t), strict=True)]  # fmt: skip
    names_s, names_t = known
    shown = [f" ({_shorten(found)})" if found else "" for found in known]
    if classes_s != classes_t:
        raise IncompatibleModelsError(
            f"{method} compares logits class by class, but the student has {classes_s} classes{shown[0]} and the "
            f"teacher {classes_t}{shown[1]}; use a method that compares features, or a teacher of the same classes"
        )
    if names_s is not None and names_t is not None and names_s != names_t:
        index = next(i for i, pair in enumerate(zip(names_s, names_t, strict=True)) if pair[0] != pair[1])
        raise IncompatibleModelsError(
            f"{method} compares logits class by class, but class {index} of {classes_s} is {names_s[index]!r} for the "
            f"student and {names_t[index]!r} for the teacher; both need the same classes in the same order"
        )
    return classes_s


def _shorten(names: Sequence[str], most: int = 5) -> str:
    rest = [f"… {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *rest])


def require_positive(argument: str, value: float) -> None:
    """Raise a ConfigError unless ``value`` is above 0."""
    if not value > 0:
        raise ConfigError(f"{argument}={value} must be above 0")


def require_objects(method: str, context: MethodContext) -> Objects:
    """The annotated objects of the batch; a ConfigError if it has no instances."""
    if context.objects is None:
        raise ConfigError(
            f"{method} needs each image's annotated objects, but the training loader's batches are no lists of dicts "
            f"with 'instances', as Detectron2's are"
        )
    return context.objects


def require_known(method: str, context: MethodContext, field: str) -> Tensor:
    """A field of the context that the method cannot do without; a ConfigError if the batch does not know it."""
    value = getattr(context, field)
    if value is None:
        raise ConfigError(
            f"{method} needs each batch's {field} ({_PURPOSE[field]}), but the training loader's batches carry none"
        )
    return value


def hard_targets(method: str, context: MethodContext) -> Tensor:
    """The class of each image, (B,) int64: the heaviest one where targets are mixed or smoothed."""
    if context.targets is None:
        return require_known(method, context, "labels")
    return context.targets if context.targets.ndim == 1 else context.targets.argmax(1)


def require_query_decoder(method: str, who: str, model: nn.Module | None) -> QueryDecoder:
    """What runs a model's decoder with other queries; an IncompatibleModelsError if it does not offer that."""
    decoder = model.query_decoder() if isinstance(model, HasQueryDecoder) else None
    if decoder is None:
        raise IncompatibleModelsError(
            f"{method} runs the {who}'s decoder with queries of its own choice, which {type(model).__name__} does not "
            f"offer (query_decoder(), see docs/extending.md); a ViDT does"
        )
    return decoder


def require_several(method: str, values: Tensor) -> None:
    """Raise a ConfigError for a batch of a single image, (1, …): the method relates the images of a batch."""
    if values.shape[0] < 2:
        raise ConfigError(
            f"{method} relates the images of a batch to each other, but this batch has {values.shape[0]}; use at "
            f"least 2 per process"
        )
