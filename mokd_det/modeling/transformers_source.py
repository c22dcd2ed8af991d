"""A Hugging Face detector from a configuration, a folder of ``save_pretrained`` or, if asked, the hub."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from mokd_det.errors import CheckpointError, ConfigError, ExportError, MoKDError, require_choice
from mokd_det.modeling.transformers_family import Family, family_of

__all__ = [
    "Source",
    "import_transformers",
    "load_backbone",
    "load_detector",
    "load_source",
    "one_line",
    "quiet",
    "read_processor",
]

Source = str | os.PathLike[str] | Mapping[str, Any]
"""A folder (or hub id), or a configuration with its ``model_type``."""

ClassMismatch = Literal["error", "reinit"]

MINIMUM = (5, 19)
"""Up to 5.17, RT-DETR and D-FINE computed the main loss over the denoising queries too (PR #48528)."""

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def import_transformers() -> ModuleType:
    """The package transformers; a ConfigError if it is missing, or too old."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "Hugging Face detectors need the package transformers, which is not installed: pip install "
            "'mokd_det[transformers]'"
        ) from error
    found = tuple(int(part) for part in re.findall(r"\d+", transformers.__version__)[:2])
    if found < MINIMUM:
        raise ConfigError(
            f"transformers {transformers.__version__} is too old: {'.'.join(map(str, MINIMUM))} or later is needed, "
            "because earlier ones compute RT-DETR's and D-FINE's main loss over the denoising queries too; pip "
            "install -U 'mokd_det[transformers]'"
        )
    return transformers


def load_source(source: Source, allow_download: bool, auto: str) -> tuple[Any, str | None, str]:
    """The configuration of a source, the folder or hub id of its weights (None: there are none), its name for messages.

    Args:
        source: see :data:`Source`.
        allow_download: a name that is no folder may be looked up on the hub.
        auto: name of transformers' class that the model is built with, for messages.

    Raises:
        ConfigError: no such folder, no configuration in it, or one that transformers does not know.
    """
    transformers = import_transformers()
    if isinstance(source, (Mapping, DictConfig)):
        settings = _plain(source)
        kind = settings.pop("model_type", None)
        if kind is None:
            raise ConfigError(
                f"source={settings} has no model_type, such as 'rt_detr_v2', which says what it configures"
            )
        with one_line(f"source of model_type {kind!r}"):
            return transformers.AutoConfig.for_model(kind, **settings), None, f"model_type {kind!r}"
    name = os.fspath(source)
    if not name:
        raise ConfigError(
            "source is empty; give a folder with a model of transformers, for instance model.student.source=DIR"
        )
    forbidden = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE")
    offline = forbidden or not allow_download
    if not Path(name).is_dir() and offline:
        hint = (
            "HF_HUB_OFFLINE forbids to look on the hub"
            if allow_download
            else "allow_download=True takes a hub id"
        )
        raise ConfigError(
            f"source='{name}' is no folder with a model of transformers ({auto}.save_pretrained); {hint}"
        )
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ConfigError(f"source='{name}' has no config.json; {auto}.save_pretrained writes such a folder")
    with one_line(f"source='{name}': config.json"):
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=offline)
    return config, name, f"source='{name}'"


def load_detector(
    source: Source,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    on_class_mismatch: ClassMismatch = "error",
    allow_download: bool = False,
) -> tuple[Any, Family, dict[str, Any], dict[str, str]]:
    """A detector, its family, the settings of its image processor ({}: there are none), and its fresh class heads.

    Those are the tensors that have random values in place of the folder's, each with the reason.

    Args:
        source: see :data:`Source`.
        class_names: of the contiguous classes; None: the source's.
        num_classes: where the names are not known; None: the source's.
        on_class_mismatch: if a folder has other classes: "error", or "reinit": its class heads start afresh.
        allow_download: see :func:`load_source`.

    Raises:
        ConfigError: a source that is no detector, or has other classes.
        CheckpointError: weights are missing or do not fit.
    """
    require_choice("on_class_mismatch", on_class_mismatch, ClassMismatch)
    transformers = import_transformers()
    config, folder, where = load_source(source, allow_download, "AutoModelForObjectDetection")
    architectures = [name for name in config.architectures or () if not name.endswith("ForObjectDetection")]
    if folder is not None and architectures:
        raise ConfigError(
            f"{where} holds a {architectures[0]}, which is no object detector (…ForObjectDetection)"
        )
    family = family_of(config, where)
    own = [str(config.id2label[index]) for index in range(config.num_labels)]
    names = _wanted_names(own, class_names, num_classes)
    mismatch = _class_difference(own, names) if folder is not None else ""
    if mismatch and on_class_mismatch == "error":
        raise ConfigError(
            f"{where} has other classes: {mismatch}; on_class_mismatch='reinit' starts its class heads afresh"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}
    if folder is None:
        with one_line(where):
            model = transformers.AutoModelForObjectDetection.from_config(config)
        return model.float(), family, {}, {}
    auto, added = transformers.AutoModelForObjectDetection, len(names) - len(own)
    model, fresh = _with_weights(auto, config, folder, where, added, allow_download)
    if mismatch and not added:
        fresh = _start_class_heads(transformers, model, config)
    return model, family, read_processor(folder), fresh


def load_backbone(source: Source, allow_download: bool) -> tuple[Any, Any, str | None, str]:
    """A network without a head (``AutoModel``): it, its configuration, its folder, and its name for messages.

    Raises:
        ConfigError: no such source.
        CheckpointError: weights are missing or do not fit.
    """
    transformers = import_transformers()
    config, folder, where = load_source(source, allow_download, "AutoModel")
    if folder is None:
        with one_line(where):
            return transformers.AutoModel.from_config(config).float(), config, None, where
    model, _ = _with_weights(transformers.AutoModel, config, folder, where, 0, allow_download)
    return model, config, folder, where


def _with_weights(
    auto: Any, config: Any, folder: str, where: str, added: int, allow_download: bool
) -> tuple[nn.Module, dict[str, str]]:
    """The model with its weights, and what of it is fresh; ``added``: how many classes more than in the folder."""
    if Path(folder).is_dir() and not any(Path(folder, name).is_file() for name in WEIGHTS):
        raise CheckpointError(
            f"{where} has no weights ({WEIGHTS[0]}); a configuration alone is given as source=dict(model_type=…)"
        )
    with one_line(where, CheckpointError), quiet():
        model, report = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=not allow_download,
        )
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if missing:
        raise CheckpointError(
            f"{where}: its weights lack {len(missing)} of the model's tensors, '{missing[0]}' first"
        )
    for name, found, wanted in mismatched:
        if not added or wanted[0] - found[0] != added or found[1:] != wanted[1:]:
            raise CheckpointError(
                f"{where}: '{name}' is {list(found)} in its weights, {list(wanted)} by its config.json"
            )
    return model, {
        name: f"{list(found)} in the file, {list(wanted)} here" for name, found, wanted in mismatched
    }


def _start_class_heads(transformers: ModuleType, model: nn.Module, config: Any) -> dict[str, str]:
    """Initialise the class heads again where the count of the classes does not tell that they are others."""
    fresh = transformers.AutoModelForObjectDetection.from_config(config).state_dict()
    names = {**config.id2label, len(config.id2label): "one more"}
    larger = type(config).from_dict({**config.to_dict(), "id2label": names})
    shapes = {
        name: value.shape
        for name, value in transformers.AutoModelForObjectDetection.from_config(larger).state_dict().items()
    }
    state = model.state_dict()
    heads = [name for name, value in state.items() if shapes[name] != value.shape]
    with torch.no_grad():
        for name in heads:
            state[name].copy_(fresh[name])
    return dict.fromkeys(heads, "other classes of the same number")


def _wanted_names(own: list[str], names: Sequence[str] | None, count: int | None) -> list[str]:
    wanted = own if names is None else [str(name) for name in names]
    if names is None and count is not None and count != len(own):
        wanted = [f"LABEL_{index}" for index in range(count)]
    if count is not None and count != len(wanted):
        raise ConfigError(f"num_classes={count}, but class_names has {len(wanted)}")
    if not wanted:
        raise ConfigError("class_names is empty; a detector has one class at least")
    return wanted


def _class_difference(own: Sequence[str], wanted: Sequence[str]) -> str:
    """In words; "" if there is none, as names that say nothing (LABEL_0) contradict nothing."""
    if len(own) != len(wanted):
        return f"{len(own)}, not {len(wanted)}"
    for index, (found, name) in enumerate(zip(own, wanted, strict=True)):
        if found != name and not {found, name} & {f"LABEL_{index}"}:
            return f"class {index} is '{found}', not '{name}'"
    return ""


def read_processor(folder: str) -> dict[str, Any]:
    """The settings of the image processor in a folder; {}: it has none. A ConfigError for what is no JSON object."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = Path(folder, name)
        if file.is_file():
            try:
                settings = json.loads(file.read_text(encoding="utf-8"))
                return dict(settings.get("image_processor", settings))
            except (ValueError, AttributeError, TypeError, OSError) as error:
                raise ConfigError(
                    f"'{file}' is no JSON object with an image processor's settings: {error}"
                ) from error
    return {}


def _plain(value: Any) -> Any:
    if isinstance(value, (DictConfig, ListConfig)):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def one_line(where: str, kind: type[MoKDError] = ConfigError) -> Iterator[None]:
    """What another library says of a wrong configuration or file, by many classes of exceptions, as one of ours."""
    try:
        yield
    except (ConfigError, CheckpointError, ExportError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{where}: {reason[:300]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and tables about loading: what matters is reported in our words."""
    from transformers.utils import logging as their_logging

    level, bars = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity_error()
    their_logging.disable_progress_bar()
    try:
        yield
    finally:
        their_logging.set_verbosity(level)
        if bars:
            their_logging.enable_progress_bar()
