"""Checkpoints that survive a kill at any moment, load no code, and say clearly what does not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

from mokd_det.checkpoint.atomic_file import atomic_write, remove_leftovers
from mokd_det.checkpoint.key_report import compare_keys
from mokd_det.checkpoint.reading import load_file
from mokd_det.engine.machine_error import error_chain, is_lost_worker
from mokd_det.errors import CheckpointError, first_line

__all__ = ["AtomicCheckpointer"]

logger = logging.getLogger(__name__)


def _load_strictly(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    report = compare_keys(weights, model.state_dict())
    if not report.is_exact:
        logger.error("%s does not fit %s:\n%s", source, type(model).__name__, report)
        raise CheckpointError(f"{source} does not fit the model {type(model).__name__}: {report.summary()}")
    model.load_state_dict(weights)


def _save(content: Mapping[str, Any], path: Path) -> None:
    try:
        with atomic_write(path) as handle:
            torch.save(dict(content), handle)
    # A full disk shows as OSError or, from inside torch's zip writer, as RuntimeError.
    except (OSError, RuntimeError) as error:
        if is_lost_worker(error):
            raise
        # The zip writer fails once more while it closes the file; what the system said stands behind that.
        first = next((e for e in error_chain(error) if isinstance(e, OSError)), error)
        reason = first_line(first)
        raise CheckpointError(
            f"checkpoint '{path}' could not be written ({reason}); earlier checkpoints are untouched"
        ) from error


class AtomicCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with the guarantees that a long training needs.

    - A file, and the tag ``last_checkpoint``, is replaced only by a complete one.
    - Files are read with ``weights_only=True``: a pickle that runs code is refused.
    - Keys and shapes must fit exactly.
    - :meth:`resume` falls back to the newest readable checkpoint.

    Args:
        model: whose plain state dict becomes "model" in the file. For a distillation this is the student, so
            that every checkpoint is usable like one of a student trained alone.
        save_dir: where checkpoints are written and looked for; created on the first save.
        save_to_disk: default: only on the main process.
        checkpointables: further objects with ``state_dict`` and ``load_state_dict``, by their key in the
            file.

    Attributes:
        resumed_from: name of the file that :meth:`resume` has loaded; "" before.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.resumed_from = ""
        self._swept = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` with further plain values (tensors, numbers, strings, lists, dicts), and tag
        it as the last one.

        Raises:
            CheckpointError: the file could not be written; the earlier ones are untouched and still tagged.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        content: dict[str, Any] = {"model": self.model.state_dict()}
        content.update((key, item.state_dict()) for key, item in self.checkpointables.items())
        content.update(kwargs)
        directory = Path(self.save_dir)
        directory.mkdir(parents=True, exist_ok=True)
        self.sweep()
        path = directory / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        _save(content, path)
        self.tag_last_checkpoint(path.name)

    def sweep(self) -> None:
        """Delete what killed writers left half-written in ``save_dir``; only for the one that writes there now."""
        if not self._swept and self.save_to_disk:
            remove_leftovers(self.save_dir)
            self._swept = True

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make ``last_checkpoint`` name this file."""
        path = Path(self.save_dir) / "last_checkpoint"
        try:
            with atomic_write(path, "w") as handle:
                handle.write(last_filename_basename)
        except OSError as error:
            raise CheckpointError(
                f"'{path}' could not be written ({error}); it names the checkpoint before"
            ) from error

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model and the named checkpointables (default: all that the file has).

        Returns:
            What else the file holds.

        Raises:
            CheckpointError: see :func:`mokd_det.checkpoint.load_file`; or keys or shapes differ.
        """
        if not path:
            logger.info("No checkpoint given: the model keeps its initial weights")
            return {}
        return self._restore(load_file(path), path, checkpointables)

    def resume(self) -> dict[str, Any] | None:
        """Load the newest readable checkpoint of ``save_dir`` with all checkpointables, the same one on every rank.

        The file that ``last_checkpoint`` names is tried first, then the others, newest first; each one that
        cannot be read is reported and passed over.

        Returns:
            What else the file holds; None if the directory has no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints but none is readable, or the one that is does not fit.
        """
        chosen: str | None = None
        content: dict[str, Any] | None = None
        failures: list[str] = []
        if comm.is_main_process():
            for candidate in self._candidates():
                try:
                    content = load_file(candidate)
                    lacking = [name for name in self.checkpointables if name not in content]
                    if lacking:
                        raise CheckpointError(
                            f"checkpoint '{candidate}' cannot be resumed: it has no '{lacking[0]}'"
                        )
                except CheckpointError as error:
                    logger.warning("Passing over a checkpoint: %s", error)
                    failures.append(str(error))
                    continue
                chosen = candidate
                break
        chosen, failures = comm.all_gather((chosen, failures))[0]
        if chosen is None:
            if failures:
                raise CheckpointError(
                    f"no checkpoint in '{self.save_dir}' is readable; the newest one: {failures[0]}. "
                    "Move them away to start again"
                )
            return None
        rest = self._restore(content if content is not None else load_file(chosen), chosen, None)
        self.resumed_from = Path(chosen).name
        return rest

    def _candidates(self) -> list[str]:
        directory = Path(self.save_dir)
        files = sorted(
            directory.glob("model_*.pth"), key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True
        )
        tag = directory / "last_checkpoint"
        if tag.is_file():
            tagged = directory / tag.read_text(errors="replace").strip()
            files = [tagged, *(file for file in files if file != tagged)]
        return [str(file) for file in files]

    def _restore(
        self, content: dict[str, Any], path: str, checkpointables: list[str] | None
    ) -> dict[str, Any]:
        names = list(self.checkpointables) if checkpointables is None else checkpointables
        _load_strictly(self.model, content.pop("model"), f"checkpoint '{path}'")
        for name in names:
            if name not in content:
                if checkpointables is not None:
                    raise CheckpointError(f"checkpoint '{path}' has no '{name}'")
                continue
            item, state = self.checkpointables[name], content.pop(name)
            if isinstance(item, nn.Module):
                _load_strictly(item, state, f"'{name}' of checkpoint '{path}'")
                continue
            try:
                item.load_state_dict(state)
            except (ValueError, KeyError, TypeError, RuntimeError) as error:
                raise CheckpointError(
                    f"'{name}' of checkpoint '{path}' does not fit this configuration: {error}"
                ) from error
        return content
