"""What the processes of ``test_torchrun.py`` run, started by something else than our launcher."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm

from mokd_det.engine import launch
from mokd_det.errors import DatasetError


def main(mode: str, folder: str) -> None:
    rank = comm.get_rank()
    if mode == "mistake":
        raise DatasetError("image 7 cannot be decoded")
    if mode == "bug" and rank == 1:
        raise ZeroDivisionError("a bug")
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    seen = {"world": comm.get_world_size(), "local": comm.get_local_rank(), "sum": total.item()}
    Path(folder, f"rank{rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    sys.exit(launch(main, args=(sys.argv[1], sys.argv[2])))
