"""Weights of any known origin into a model: what does not fit is an error, or asked for and reported."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mokd_det.checkpoint.identity import Identity, identify
from mokd_det.checkpoint.key_report import KeyReport, compare_keys
from mokd_det.checkpoint.official_vidt import CATEGORY_ROWS, CONTIGUOUS_ROWS, from_official, has_class_rows
from mokd_det.checkpoint.reading import load_file
from mokd_det.checkpoint.swin import NOT_IN_CLASSIFIERS, backbone_weights
from mokd_det.errors import CheckpointError, ConfigError

__all__ = ["KEEP_ROWS", "ON_CLASS_MISMATCH", "LoadReport", "load_into", "load_state"]

KEEP_ROWS = ("coco80", "all")
ON_CLASS_MISMATCH = ("error", "reinit")

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: the file, as messages name it.
        loaded: tensors of the model that have the file's values.
        rows_picked: those of them that took 80 of 91 class rows.
        skipped: tensors of the file, under its names, that the model has no place for.
        reinitialised: class heads that keep the model's initial values: (name, shape in the file, in the
            model).
        kept: other tensors of the model that keep their values, because the file has none for them.
    """

    source: str
    identity: Identity
    loaded: tuple[str, ...]
    rows_picked: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    reinitialised: tuple[tuple[str, Shape, Shape], ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the whole model comes from the file."""
        return not (self.reinitialised or self.kept)

    def __str__(self) -> str:
        """A table with one line per group of tensors whose names differ in numbers only."""
        looks = f": {self.identity}" if self.identity.family else ""
        shapes = {
            name: f"{list(found)} in the file, {list(wanted)} here"
            for name, found, wanted in self.reinitialised
        }
        rows = [("loaded", "", len(self.loaded))]
        for title, names in (
            (f"{CONTIGUOUS_ROWS} of {CATEGORY_ROWS} rows", self.rows_picked),
            ("skipped", self.skipped),
            ("re-initialised", tuple(shapes)),
            ("not in the file", self.kept),
        ):
            groups = Counter(map(_without_numbers, names))
            notes = {_without_numbers(name): shapes.get(name, "") for name in names}
            rows += [(title, f"{group}  {notes[group]}".rstrip(), count) for group, count in groups.items()]
        table = "\n".join(f"  {title:<15} {count:>5}  {group}".rstrip() for title, group, count in rows)
        return f"{self.source}{looks}\n{table}"


def load_into(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    keep_rows: str = "coco80",
    on_class_mismatch: str = "error",
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_classifier: bool = True,
    what: str = "checkpoint",
) -> LoadReport:
    """Load a file into a model.

    A :class:`mokd_det.modeling.ViDT` takes files of this package, published ViDT and ViDT+ files, and, for its backbone
    alone, Swin classifiers in Microsoft's or timm's layout. Any other model takes files with exactly its names.

    Args:
        model: the bare module, not its data-parallel wrapper.
        path, what: see :func:`mokd_det.checkpoint.load_file`.
        keep_rows: of published class heads, which are indexed by COCO's category ids: "coco80" picks the 80
            categories for a model of 80 classes, "all" takes all 91 rows.
        on_class_mismatch: what other numbers of classes in file and model are: "error", or "reinit", which
            keeps the model's own class heads and loads the rest.
        allow_missing: ``fnmatch`` patterns of the model's tensors that the file may lack.
        allow_unexpected: ``fnmatch`` patterns of the file's tensors that may be ignored.
        allow_classifier: whether a Swin classifier may fill a detector's backbone; off where the model is to
            be used as it is then, because all else keeps its initial values.

    Returns:
        What became of every tensor; it is logged too.

    Raises:
        CheckpointError: the file is unusable, or does not fit; then no weight of the model has changed.
        ConfigError: ``keep_rows`` or ``on_class_mismatch`` has an unknown value.
    """
    return load_state(
        model,
        load_file(path, what=what)["model"],
        f"{what} '{os.fspath(path)}'",
        keep_rows=keep_rows,
        on_class_mismatch=on_class_mismatch,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
        allow_classifier=allow_classifier,
    )


def load_state(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    keep_rows: str = "coco80",
    on_class_mismatch: str = "error",
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    allow_classifier: bool = True,
) -> LoadReport:
    """:func:`load_into` for weights that have been read already; ``source`` is how messages name them."""
    _check_choice("keep_rows", keep_rows, KEEP_ROWS)
    _check_choice("on_class_mismatch", on_class_mismatch, ON_CLASS_MISMATCH)
    expected = model.state_dict()
    origin, target = identify(weights), identify(expected)
    if origin.family == "Swin" and target.family and not allow_classifier:
        raise CheckpointError(
            f"{source} is {origin}, which fills a backbone only; the model is {target} and needs the file of "
            "a detector"
        )
    usable, dropped, harmless = _translate(weights, origin, expected, target, source, keep_rows)
    fit = compare_keys(usable, expected)
    serious = fit.without([*allow_missing, *harmless], allow_unexpected)
    class_heads = tuple(entry for entry in serious.mismatched if target.family and has_class_rows(entry[0]))
    if serious.missing or serious.unexpected or len(class_heads) < len(serious.mismatched):
        logger.error("%s does not fit %s:\n%s", source, type(model).__name__, serious)
        raise CheckpointError(_misfit(source, origin, target, serious, type(model).__name__))
    if class_heads and on_class_mismatch == "error":
        raise CheckpointError(_class_mismatch(source, origin, target, class_heads[0], keep_rows))
    # The metadata (versions of modules) decide how state dicts of old releases are read. torch keeps them in an
    # attribute that no type declares.
    chosen = OrderedDict(
        (key, value)
        for key, value in usable.items()
        if key in expected and value.shape == expected[key].shape
    )
    if hasattr(weights, "_metadata") and usable is weights:
        # torch keeps the versions of modules in an attribute that no type declares.
        chosen._metadata = weights._metadata  # type: ignore[attr-defined]
    model.load_state_dict(chosen, strict=False)
    report = LoadReport(
        source=source,
        identity=origin,
        loaded=tuple(chosen),
        rows_picked=tuple(
            key for key in chosen if key in weights and chosen[key].shape != weights[key].shape
        ),
        skipped=(*dropped, *fit.unexpected),
        reinitialised=class_heads,
        kept=fit.missing,
    )
    logger.log(logging.INFO if report.is_complete else logging.WARNING, "Loaded %s", report)
    return report


def _translate(
    weights: Mapping[str, Tensor],
    origin: Identity,
    expected: Mapping[str, Tensor],
    target: Identity,
    source: str,
    keep_rows: str,
) -> tuple[Mapping[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """The file's weights under the model's names; the names in the file of what was left out; patterns of the model's
    names that files of this kind never have."""
    if origin.layout == "official" and target.layout == "mokd_det":
        rows = {key: len(value) for key, value in expected.items() if has_class_rows(key)}
        converted, dropped = from_official(weights, source, rows if keep_rows == "coco80" else {})
        return converted, dropped, ()
    prefix = next((prefix for prefix in ("backbone.", "") if f"{prefix}det_token" in expected), None)
    if origin.family == "Swin" and prefix is not None:
        converted, dropped = backbone_weights(weights)
        outside = [key for key in expected if not key.startswith(prefix)]
        harmless = (*outside, *(prefix + pattern for pattern in NOT_IN_CLASSIFIERS))
        return {prefix + key: value for key, value in converted.items()}, dropped, harmless
    return weights, (), ()


def _misfit(source: str, origin: Identity, target: Identity, difference: KeyReport, model_type: str) -> str:
    if not target.family:
        return f"{source} does not fit the model {model_type}: {difference.summary()}"
    return (
        f"{source} does not fit: this file looks like {origin}; the model is {target}; {difference.summary()}"
    )


def _class_mismatch(
    source: str, origin: Identity, target: Identity, entry: tuple[str, Shape, Shape], keep_rows: str
) -> str:
    name, found, wanted = entry
    hint = "on_class_mismatch='reinit' loads all but the class heads"
    if origin.layout == "official" and (found[0], wanted[0]) == (CATEGORY_ROWS, CONTIGUOUS_ROWS):
        hint = f"keep_rows={keep_rows!r} keeps them, keep_rows='coco80' picks COCO's 80 categories; or {hint}"
    return (
        f"{source} has {found[0]} classes, the model {wanted[0]} ('{name}'; this file looks like {origin}; "
        f"the model is {target}); {hint}"
    )


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}; it must be {' or '.join(map(repr, choices))}")


def _without_numbers(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
