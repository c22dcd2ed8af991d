"""Read named tensors of a model while it runs, by forward hooks on modules found by their path.

No model is edited for this. A model of this package offers :class:`~mokd_det.layers.tap_point.TapPoint`
modules under ``taps``; of any other model every module can be read:

* a string is a module path (``"backbone.fpn_output3"``), or the name of an offered tap (``"patch"`` for
  ``"taps.patch"``);
* a mapping adds what the path does not tell: ``{"path": "backbone.body", "strides": [8, 16], "channels": [128, 256]}``
  describes the output of a module, and ``"keep": [16]`` selects levels of it; ``"per_level": True``: the module runs
  once per level (the heads of dense detectors); without ``channels``, ``strides`` selects levels of an output whose
  description is known (from a tap point, or from the ``output_shape()`` of Detectron2's backbones).

Outputs that are a list are read in their order. Outputs that are a dict are read in theirs, unless a
Detectron2 backbone names its levels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mokd_det.contract import as_task
from mokd_det.errors import ConfigError, IncompatibleModelsError
from mokd_det.layers.tap_point import FeatureMap, TapPoint, TapSpec

__all__ = ["Specs", "TapRecorder", "TapSource", "TapSpelling", "TapValue", "Taps", "find_module", "tap_specs"]

TapValue: TypeAlias = Tensor | list[FeatureMap]
"""Vectors (B, C), tokens (B, N, C) or (L, B, N, C), or the maps of a feature pyramid."""
Taps: TypeAlias = Mapping[str, TapValue]
"""The values of a model's taps, by name."""
Specs: TypeAlias = Mapping[str, TapSpec]
"""What they deliver."""


@dataclass(frozen=True)
class TapSource:
    """Where a tap is and, for modules that cannot say it themselves, what it delivers.

    Attributes:
        path: module path, or the name of a tap point under ``taps``.
        spec: description of the module's whole output; None: taken from the module.
        strides: the levels to keep, in this order; None: all.
        per_level: the module runs once per map, in the order of the strides, as the heads of dense detectors do.
    """

    path: str
    spec: TapSpec | None = None
    strides: tuple[int, ...] | None = None
    per_level: bool = False

    @classmethod
    def parse(cls, value: TapSpelling) -> TapSource:
        """From the spelling of a configuration file (see the module's docstring).

        Raises:
            ConfigError: unknown key, missing path, or a description that contradicts itself.
        """
        if isinstance(value, TapSource):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, Mapping):
            raise ConfigError(f"a tap is a module path or a mapping with the key 'path', not {value!r}")
        fields = dict(value)
        known = ("path", "kind", "channels", "strides", "keep", "num_tokens", "num_levels", "per_level")
        unknown = sorted(set(fields) - set(known))
        if unknown or "path" not in fields:
            problem = f"unknown key {unknown[0]!r}" if unknown else "no key 'path'"
            raise ConfigError(f"tap {fields}: {problem}; the keys are {', '.join(known)}")
        strides = tuple(fields["strides"]) if "strides" in fields else None
        if "channels" not in fields:
            described = sorted(set(fields) - {"path", "strides"})
            if described:
                raise ConfigError(
                    f"tap {fields['path']!r}: {described[0]!r} describes an output only with 'channels'"
                )
            return cls(str(fields["path"]), strides=strides)
        channels = fields["channels"]
        try:
            spec = TapSpec(
                kind=fields.get("kind", "maps" if strides else "tokens"),
                channels=(channels,) if isinstance(channels, int) else tuple(channels),
                strides=strides or (),
                num_tokens=fields.get("num_tokens"),
                num_levels=fields.get("num_levels", 1),
            )
        except ValueError as error:
            raise ConfigError(f"tap {fields['path']!r}: {error}") from error
        keep = tuple(fields["keep"]) if "keep" in fields else None
        per_level = bool(fields.get("per_level", False))
        if per_level and spec.kind != "maps":
            raise ConfigError(f"tap {fields['path']!r}: per_level=True is for maps, with 'strides'")
        return cls(str(fields["path"]), spec, keep, per_level)


TapSpelling: TypeAlias = str | Mapping[str, Any] | TapSource
"""A tap in a configuration."""


@dataclass(frozen=True)
class _Reader:
    """A tap found in a model: its module and how its output becomes the canonical value."""

    name: str
    path: str
    module: nn.Module
    spec: TapSpec | None  # of the module's whole output; None: unknown
    keys: tuple[str, ...] | None  # names of the levels where the output is a dict
    levels: tuple[int, ...] | None  # positions of the levels to keep
    per_level: bool = False  # its module runs once per map

    @property
    def delivered(self) -> TapSpec | None:
        """What :meth:`read` gives, after the selection of levels."""
        if self.spec is None or self.levels is None:
            return self.spec
        return TapSpec(
            "maps",
            channels=tuple(self.spec.channels[i] for i in self.levels),
            strides=tuple(self.spec.strides[i] for i in self.levels),
        )

    def read(self, output: Any) -> TapValue:
        """The canonical value of the module's output, checked against the description."""
        dimensions = output.ndim if isinstance(output, Tensor) else 4
        undescribed = {2: "vectors", 3: "tokens"}.get(dimensions, "maps")
        kind = undescribed if self.spec is None else self.spec.kind
        if kind == "vectors":
            return self._vectors(output)
        return self._tokens(output) if kind == "tokens" else self._maps(output)

    def _vectors(self, output: Any) -> Tensor:
        channels = None if self.spec is None else self.spec.channels[0]
        if not isinstance(output, Tensor) or output.ndim != 2 or channels not in (None, output.shape[1]):
            raise self._unexpected(f"vectors of shape (B, {channels or 'C'})", output)
        return output

    def _tokens(self, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise self._unexpected("a tensor of tokens", output)
        if self.spec is not None:
            count = self.spec.num_tokens if self.spec.num_tokens is not None else output.shape[-2]
            stack = () if self.spec.num_levels == 1 else (self.spec.num_levels,)
            batch = tuple(output.shape[len(stack) : len(stack) + 1])
            if tuple(output.shape) != (*stack, *batch, count, self.spec.channels[0]):
                shape = ", ".join(map(str, (*stack, "B", count, self.spec.channels[0])))
                raise self._unexpected(f"tokens of shape ({shape})", output)
        return output

    def _maps(self, output: Any) -> list[FeatureMap]:
        if isinstance(output, Mapping):
            missing = [key for key in self.keys or () if key not in output]
            if missing:
                raise self._unexpected(f"a map {missing[0]!r}", output)
            levels: list[Any] = [output[key] for key in self.keys] if self.keys else list(output.values())
        elif isinstance(output, (list, tuple)):
            levels = list(output)
        else:
            levels = [output]
        strides = self.spec.strides if self.spec is not None else (0,) * len(levels)
        if len(levels) != len(strides):
            raise self._unexpected(f"{len(strides)} maps of strides {strides}", output)
        maps = []
        for index, (level, stride) in enumerate(zip(levels, strides, strict=True)):
            tensor = level.tensor if isinstance(level, FeatureMap) else level
            if not isinstance(tensor, Tensor) or tensor.ndim != 4:
                raise self._unexpected("maps of shape (B, C, H, W)", output)
            if self.spec is not None and tensor.shape[1] != self.spec.channels[index]:
                raise self._unexpected(f"{self.spec.channels[index]} channels at stride {stride}", tensor)
            maps.append(level if isinstance(level, FeatureMap) else FeatureMap(tensor, None, stride))
        return maps if self.levels is None else [maps[i] for i in self.levels]

    def _unexpected(self, expected: str, output: Any) -> IncompatibleModelsError:
        return IncompatibleModelsError(
            f"tap {self.name!r} (module {self.path!r}) should deliver {expected}, but gave "
            f"{_describe(output)}"
        )


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, FeatureMap):
        return f"a map of shape {tuple(output.tensor.shape)} at stride {output.stride}"
    if isinstance(output, (list, tuple)):
        return f"{len(output)} values: " + "; ".join(_describe(item) for item in output)
    if isinstance(output, Mapping):
        return "a mapping: " + "; ".join(f"{key!r}: {_describe(item)}" for key, item in output.items())
    return f"a {type(output).__name__}"


def find_module(model: nn.Module, path: str) -> tuple[str, nn.Module]:
    """A module of ``model`` by its path, and that path in full.

    ``path`` may be the name of a tap that the model offers: "patch" for "taps.patch".

    Raises:
        IncompatibleModelsError: no such module; the message lists paths that look alike.
    """
    for candidate in (f"taps.{path}", path) if path else ():
        try:
            return candidate, model.get_submodule(candidate)
        except AttributeError:
            continue
    names = [name for name, _ in model.named_modules() if name]
    offered = [name.removeprefix("taps.") for name in names if name.startswith("taps.")]
    near = difflib.get_close_matches(path, [*offered, *names], n=5, cutoff=0.5)
    hints = [f"near matches: {', '.join(near)}"] if near else []
    if offered:
        hints.append(f"the model offers the taps {', '.join(offered)}")
    explained = as_task(model).missing_tap_hint(path)
    if explained:
        hints.insert(0, explained)
    hint = "; ".join(hints) or "model.named_modules() lists the paths it has"
    raise IncompatibleModelsError(f"{type(model).__name__} has no module {path!r} to tap; {hint}")


def _known_spec(module: nn.Module) -> tuple[TapSpec | None, tuple[str, ...] | None]:
    """The description that a module gives of its own output, and the names of its levels if they have any."""
    if isinstance(module, TapPoint):
        return module.spec, None
    if isinstance(module, Backbone):
        shapes = sorted(module.output_shape().items(), key=lambda item: item[1].stride)
        channels = tuple(shape.channels for _, shape in shapes)
        strides = tuple(shape.stride for _, shape in shapes)
        return TapSpec("maps", channels, strides), tuple(key for key, _ in shapes)
    return None, None


def _find_tap(model: nn.Module, name: str, value: TapSpelling) -> _Reader:
    source = TapSource.parse(value)
    path, module = find_module(model, source.path)
    spec, keys = (source.spec, None) if source.spec is not None else _known_spec(module)
    levels = None
    if source.strides is not None:
        if spec is None:
            raise IncompatibleModelsError(_no_spec(model, name, path, module))
        missing = [stride for stride in source.strides if stride not in spec.strides]
        if missing:
            raise IncompatibleModelsError(
                f"tap {name!r}: {type(model).__name__}'s {path!r} has no map of stride {missing[0]}, "
                f"only {spec.strides}"
            )
        levels = tuple(spec.strides.index(stride) for stride in source.strides)
    return _Reader(name, path, module, spec, keys, levels, source.per_level)


def _no_spec(model: nn.Module, name: str, path: str, module: nn.Module) -> str:
    return (
        f"tap {name!r}: {type(model).__name__}'s {path!r} is a {type(module).__name__}, which does not say "
        f"what it delivers; write the tap as a mapping, for maps dict(path={path!r}, strides=[...], "
        f"channels=[...]), for tokens dict(path={path!r}, channels=..., num_tokens=...), for vectors "
        f"dict(path={path!r}, kind='vectors', channels=...)"
    )


def tap_specs(model: nn.Module, taps: Mapping[str, TapSpelling]) -> dict[str, TapSpec]:
    """What each tap will deliver, without running the model.

    Raises:
        IncompatibleModelsError: unknown path, or a module that neither describes its output nor is described.
        ConfigError: a tap that is spelled wrongly.
    """
    specs = {}
    for name, value in taps.items():
        reader = _find_tap(model, name, value)
        if reader.delivered is None:
            raise IncompatibleModelsError(_no_spec(model, name, reader.path, reader.module))
        specs[name] = reader.delivered
    return specs


class TapRecorder:
    """Records taps of a model during one forward pass.

        with TapRecorder(model, {"patch": "taps.patch"}) as recorder:
            outputs = model(batch)
        recorder.values["patch"]

    The hooks exist inside the ``with`` block only. A tensor is recorded as it is, with its graph.

    Args:
        model: any module.
        taps: name → tap (see the module's docstring). An undescribed module is recorded too: a tensor (B, C)
            as vectors, (B, N, C) as tokens, anything else as maps (B, C, H, W) whose stride is 0, that is, unknown.

    Raises:
        IncompatibleModelsError: unknown path (with near matches).
    """

    def __init__(self, model: nn.Module, taps: Mapping[str, TapSpelling]) -> None:
        self._readers = [_find_tap(model, name, value) for name, value in taps.items()]
        self._recorded: dict[str, TapValue] = {}
        self._runs: dict[str, list[Any]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> TapRecorder:
        self._recorded, self._runs = {}, {}
        for reader in self._readers:
            self._handles.append(reader.module.register_forward_hook(self._hook(reader)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, reader: _Reader) -> Any:
        def record(module: nn.Module, inputs: Sequence[Any], output: Any) -> None:
            if reader.per_level:
                self._runs.setdefault(reader.name, []).append(output)
                return
            if reader.name in self._recorded:
                raise IncompatibleModelsError(
                    f"tap {reader.name!r}: module {reader.path!r} runs more than once in a forward pass, so "
                    f"its value is ambiguous; tap the module that collects the results, or write per_level=True if it "
                    f"runs once per map"
                )
            self._recorded[reader.name] = reader.read(output)

        return record

    @property
    def values(self) -> dict[str, TapValue]:
        """What the forward pass delivered, by name.

        Raises:
            IncompatibleModelsError: a tapped module did not run.
        """
        for reader in self._readers:
            if reader.name in self._runs:
                self._recorded[reader.name] = reader.read(self._runs[reader.name])
            if reader.name not in self._recorded:
                raise IncompatibleModelsError(
                    f"tap {reader.name!r}: module {reader.path!r} did not run in this forward pass"
                )
        return dict(self._recorded)
