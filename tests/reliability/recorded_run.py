"""``tools/train_net.py`` as it is, with the memory and the seconds of every step written down.

python -m tests.reliability.recorded_run FIGURES.json --config-file …
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from mokd_det.engine import MoKDTrainer, argument_parser
from mokd_det.tools.train_net import train

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def main(output: str, *arguments: str) -> None:
    """Train, then write {"seconds": [s, …], "memory": [bytes, …]}, one entry a step."""
    seconds: list[float] = []
    memory: list[int] = []
    original = MoKDTrainer.run_step

    def run_step(trainer: MoKDTrainer) -> None:
        start = time.process_time()
        original(trainer)
        seconds.append(time.process_time() - start)
        memory.append(resident_bytes())

    MoKDTrainer.run_step = run_step  # type: ignore[method-assign]
    train(argument_parser("recorded run").parse_intermixed_args(list(arguments)))
    Path(output).write_text(json.dumps({"seconds": seconds, "memory": memory}))


if __name__ == "__main__":
    main(*sys.argv[1:])
