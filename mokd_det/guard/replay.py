"""A step that was refused for its numbers, run once more with a look at every module."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mokd_det.checkpoint import load_file
from mokd_det.config import TrainSettings
from mokd_det.contract import as_task
from mokd_det.engine.seeded_rng import seeded_rng, step_seed
from mokd_det.engine.setup import pick_device
from mokd_det.engine.training_model import load_training_model
from mokd_det.errors import CheckpointError
from mokd_det.guard.batch_numbers import IMAGES, bad_positions, describe_images, number_sums
from mokd_det.guard.plain_batch import from_plain

__all__ = ["MicroBatchReplay", "Replay", "replay_step"]


@dataclass
class MicroBatchReplay:
    """What a micro-batch did.

    Attributes:
        images: its images.
        inputs: kind of number that entered → the images in which it is not finite, "" if it is finite everywhere.
        first_module: the first module whose output was not finite, with what went into it; "" for none.
        losses: name → value.
        gradients: loss → what its gradient is like, in words.
        failure: the forward's error; "" for none.
    """

    images: str
    inputs: dict[str, str] = field(default_factory=dict)
    first_module: str = ""
    losses: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, str] = field(default_factory=dict)
    failure: str = ""

    @property
    def is_finite(self) -> bool:
        """Nothing was found."""
        numbers = all(math.isfinite(value) for value in self.losses.values())
        return numbers and not (
            any(self.inputs.values()) or self.first_module or self.failure or any(self.gradients.values())
        )


@dataclass
class Replay:
    """A refused step, replayed.

    Attributes:
        message: the error it was refused with.
        iteration: index of the step.
        rank: whose micro-batches these are.
        micro_batches: one entry each.
    """

    message: str
    iteration: int
    rank: int
    micro_batches: list[MicroBatchReplay]

    def __str__(self) -> str:
        lines = [f"iteration {self.iteration}, rank {self.rank}: {self.message}"]
        for number, part in enumerate(self.micro_batches):
            lines += ["", f"micro-batch {number}: {part.images}"]
            for name, images in part.inputs.items():
                lines.append(f"  {name}: {f'NOT FINITE for {images}' if images else 'finite'}")
            lines.append(f"  first module with an output that is not finite: {part.first_module or 'none'}")
            if part.failure:
                lines.append(f"  the forward failed: {part.failure}")
            width = max(map(len, part.losses), default=0)
            for name, value in part.losses.items():
                verdict = (
                    f"gradient {part.gradients[name]}" if part.gradients.get(name) else "gradient finite"
                )
                lines.append(f"  {name:<{width}}  {value:<12.6g} {verdict}")
        if all(part.is_finite for part in self.micro_batches):
            lines += [
                "",
                "Everything is finite here: other weights, precision or device than in the training?",
            ]
        return "\n".join(lines)


def replay_step(cfg: DictConfig, file: str) -> Replay:
    """Run a kept batch of a run's folder ``bad_batches`` again, with the weights, the random masks and the precision of
    the training.

    Raises:
        CheckpointError: the file holds no batch, or its weights do not fit the configuration.
    """
    content = load_file(file, what="kept batch")
    lacking = [key for key in ("batches", "iteration", "rank", "seed", "message") if key not in content]
    if lacking:
        raise CheckpointError(f"'{file}' is no kept batch: it has no '{lacking[0]}'")
    settings = TrainSettings.from_config(cfg.train)
    device = pick_device(settings.device)
    model = load_training_model(cfg, file, device, parts=content)
    autocast: AbstractContextManager[Any] = nullcontext()
    if settings.amp.enabled:
        autocast = torch.autocast(device.type, dtype=getattr(torch, settings.amp.dtype))
    iteration, rank = content["iteration"], content["rank"]
    replayed = [
        _replay(model, batch, step_seed(content["seed"], iteration, number, rank), device, autocast)
        for number, batch in enumerate(from_plain(content["batches"]))
    ]
    return Replay(content["message"], iteration, rank, replayed)


def _replay(
    model: nn.Module, batch: Any, seed: int, device: torch.device, autocast: AbstractContextManager[Any]
) -> MicroBatchReplay:
    found = MicroBatchReplay(describe_images(batch))
    found.inputs[IMAGES] = _bad_images(batch, IMAGES)
    task = as_task(model)
    watched = {"": model} if task.teacher is None else {"": model, "teacher": task.teacher}
    try:
        with _first_bad_output(watched, found), autocast:
            prepared = task.prepare_batch(batch)
            for name in number_sums(prepared):
                found.inputs[name] = _bad_images(prepared, name)
            with seeded_rng(seed, device):
                losses = model(prepared)
    # Whatever a forward raises over such numbers is part of what is to be shown.
    except Exception as error:
        found.failure = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]}"
        return found
    losses = {"loss": losses} if isinstance(losses, Tensor) else losses
    found.losses = {name: float(value.detach()) for name, value in losses.items()}
    found.gradients = {name: _gradient(model, value) for name, value in losses.items()}
    return found


def _bad_images(batch: Any, name: str) -> str:
    positions = bad_positions(batch, name)
    return describe_images(batch, positions) if positions else ""


@contextmanager
def _first_bad_output(models: Mapping[str, nn.Module], found: MicroBatchReplay) -> Iterator[None]:
    """Note the first module that turns into something that is not finite: the innermost one, as it ends first."""
    handles: list[RemovableHandle] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found.first_module and not _is_finite(output):
                went_in = "finite" if _is_finite(inputs) else "not finite already"
                found.first_module = f"{name} ({type(module).__name__}), whose inputs were {went_in}"

        return look

    for prefix, model in models.items():
        for name, module in model.named_modules():
            path = ".".join(part for part in (prefix, name) if part) or "the model itself"
            handles.append(module.register_forward_hook(watch(path)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(_is_finite(item) for item in value)
    inner = getattr(value, "tensor", None)
    return not isinstance(inner, Tensor) or _is_finite(inner)


def _gradient(model: nn.Module, loss: Tensor) -> str:
    """What is wrong with the gradient of a loss, or ""."""
    if not loss.requires_grad:
        return ""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parameters = [parameter for _, parameter in named]
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    bad = [
        name
        for (name, _), gradient in zip(named, gradients, strict=True)
        if gradient is not None and not bool(gradient.isfinite().all())
    ]
    if not bad:
        return ""
    return f"NOT FINITE in {len(bad)} of {len(named)} parameters, first '{bad[0]}'{_guilty_function(loss, parameters)}"


def _guilty_function(loss: Tensor, parameters: list[nn.Parameter]) -> str:
    try:
        with torch.autograd.set_detect_anomaly(True, check_nan=True):
            torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        return f" ({str(error).splitlines()[0].rstrip('.')})"
    return ""
