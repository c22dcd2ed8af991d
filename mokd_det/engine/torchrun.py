"""What torchrun, and all that set its variables, tell a process of its place among the others."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mokd_det.errors import ConfigError

__all__ = ["RankInfo", "rank_info_from_environment"]

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankInfo:
    """One process of a group that something else has started.

    Attributes:
        rank: among all.
        world_size: number of all.
        local_rank: on its machine: the number of its GPU.
        local_world_size: number on each machine.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def rank_info_from_environment() -> RankInfo | None:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.

    Returns:
        None without the first three of them, some of which other programs use too: then nobody has started a group.

    Raises:
        ConfigError: values that fit no group, or no MASTER_ADDR and MASTER_PORT to meet at.
    """
    if any(name not in os.environ for name in _NUMBERS):
        return None
    rank, world_size, local_rank = (_number(name) for name in _NUMBERS)
    local_world_size = _number("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else None
    if local_world_size is None:
        if world_size > 1:
            raise ConfigError(
                "RANK, WORLD_SIZE and LOCAL_RANK are set, but not LOCAL_WORLD_SIZE, the processes of a machine; "
                "torchrun sets all of them"
            )
        local_world_size = 1
    if not (
        0 <= rank < world_size
        and 0 <= local_rank < local_world_size <= world_size
        and world_size % local_world_size == 0
    ):
        raise ConfigError(
            f"RANK={rank} WORLD_SIZE={world_size} LOCAL_RANK={local_rank} LOCAL_WORLD_SIZE={local_world_size} fit no "
            "group of processes with as many on each machine; unset them to start processes with --num-gpus"
        )
    missing = [name for name in _ADDRESS if not os.environ.get(name)]
    if world_size > 1 and missing:
        raise ConfigError(
            f"RANK, WORLD_SIZE and LOCAL_RANK are set, but not {missing[0]}, where the processes meet; torchrun sets "
            "it, or unset them all to start processes with --num-gpus"
        )
    return RankInfo(rank, world_size, local_rank, local_world_size)


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ConfigError(f"{name}={os.environ[name]!r} is no number of a process") from None
