"""What happens at a step whose losses, gradients or inputs are not finite: stop, or leave the step out; and the batch
is kept for replay either way."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from mokd_det.checkpoint.atomic_file import atomic_write
from mokd_det.contract import TrainingTask
from mokd_det.errors import first_line
from mokd_det.guard.plain_batch import to_plain

__all__ = ["BATCH_FOLDER", "NonFinitePolicy", "keep_batch", "kept_file"]

logger = logging.getLogger(__name__)

BATCH_FOLDER = "bad_batches"
"""Folder of the output directory where the batches of refused steps are kept."""


@dataclass(frozen=True)
class NonFinitePolicy:
    """What to do about NaN and infinity.

    Attributes:
        policy: "stop": the training ends with an error; "skip": the step is not taken, up to ``max_skips`` times.
        max_skips: of a whole run, counted over resumes; one more ends the training. For policy "skip".
        max_kept: batches of refused steps that are kept in ``directory``, each with the weights it was met with.
        check_gradients: look at the gradients' norms before each step. On a GPU the host then waits for the backward
            pass, which it otherwise does not. Without effect with float16, where the GradScaler looks at them.
        directory: where batches are kept; "": nowhere.
    """

    policy: str = "stop"
    max_skips: int = 10
    max_kept: int = 3
    check_gradients: bool = True
    directory: str = ""


def kept_file(directory: str, iteration: int, rank: int) -> Path:
    """The file of a rank's batch."""
    return Path(directory) / f"iteration_{iteration:07d}_rank{rank}.pth"


def keep_batch(
    file: Path, task: TrainingTask, batches: Sequence[Any], message: str, facts: Mapping[str, Any]
) -> str:
    """Write a rank's micro-batches, as the loader gave them, with the weights that they were met with (of a
    distillation student's and method's), what was wrong, and further plain values: iteration, seed, rank.

    Returns:
        "", or why they could not be kept: this never stands in the way of the error itself.
    """
    try:
        content: dict[str, Any] = {
            "model": task.eval_model.state_dict(),
            **{name: part.state_dict() for name, part in task.checkpoint_parts().items()},
            "batches": to_plain(list(batches)),
            "message": message,
            **facts,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as handle:
            torch.save(content, handle)
    except (TypeError, OSError, RuntimeError) as error:
        reason = first_line(error)
        logger.warning("The batch could not be kept in %s: %s", file, reason)
        return reason
    logger.info("Rank %d keeps its batch in %s", comm.get_rank(), file)
    return ""
