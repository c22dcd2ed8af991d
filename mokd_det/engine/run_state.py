"""What makes a resumed training the same run: its teacher, its balancer, the settings its randomness follows from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.utils import comm

from mokd_det.balancing.base import Balancer
from mokd_det.errors import CheckpointError

__all__ = ["balancer_state", "check_teacher", "load_balancer", "same_teacher_everywhere", "warn_of_changes"]

logger = logging.getLogger(__name__)


def same_teacher_everywhere(digest: str | None) -> str | None:
    """The digest, if all ranks have the same one.

    Raises:
        CheckpointError: they have read different teachers.
    """
    digests = comm.all_gather(digest)
    if len(set(digests)) > 1:
        shown = ", ".join(f"rank {rank} {str(found)[:12]}" for rank, found in enumerate(digests))
        raise CheckpointError(
            f"the ranks have different teachers ({shown}): the teacher's file was replaced while the run started, "
            "or the machines have different files"
        )
    return digest


def check_teacher(stored: str | None, own: str | None) -> None:
    """Refuse to go on with another teacher.

    Raises:
        CheckpointError: the digests differ.
    """
    if None not in (stored, own) and stored != own:
        raise CheckpointError(
            "the teacher's weights are not those this run began with: was its file replaced? Put the old file "
            "back, or begin a new run (train.init_checkpoint=FILE keeps the student's weights)"
        )


def warn_of_changes(stored: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """One warning for every setting with which the continuation is not that of an uninterrupted run."""
    for name, value in own.items():
        # What older versions did not write cannot have changed.
        if stored.get(name, value) != value:
            logger.warning(
                "%s was %s and is now %s: this run goes on, but differs from an uninterrupted one",
                name,
                stored.get(name),
                value,
            )


def balancer_state(balancer: Balancer, objectives: Sequence[str]) -> dict[str, Any]:
    """The balancer's state, and what it is the state of."""
    return {
        "type": type(balancer).__qualname__,
        "objectives": list(objectives),
        "state": balancer.state_dict(),
    }


def load_balancer(balancer: Balancer, objectives: Sequence[str], stored: Mapping[str, Any]) -> None:
    """Take over a state that is of the same kind and objectives; of another one only a warning is taken."""
    own = type(balancer).__qualname__, list(objectives)
    if (stored["type"], stored["objectives"]) == own:
        balancer.load_state_dict(stored["state"])
        return
    logger.warning(
        "The balancer starts afresh: the checkpoint has %s over %s, this run %s over %s",
        stored["type"],
        stored["objectives"],
        *own,
    )
