"""What the processes of ``test_launch.py`` run; importable in a fresh process."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist
from detectron2.utils import comm

from mokd_det.errors import DatasetError


def fail_while_the_partner_waits(directory: str) -> None:
    with open(os.path.join(directory, f"rank{comm.get_rank()}"), "w") as handle:
        handle.write(
            f"{torch.get_num_threads()} {comm.get_local_rank()} {comm.get_world_size()} {os.getpid()}"
        )
    if comm.get_rank() == 1:
        raise DatasetError("image 7 cannot be decoded")
    # As a rank that ignores the polite signal and waits for a partner that is gone.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    dist.all_reduce(torch.ones(1))
    time.sleep(3600)


def die_without_a_word() -> None:
    if comm.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)
