"""Run a step again that was refused for NaN or infinity, and say where they begin.

The command line: :mod:`mokd_det.tools.parsers.replay_batch`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mokd_det.config import load_config
from mokd_det.guard.replay import replay_step
from mokd_det.tools import command
from mokd_det.tools.parsers import replay_batch as reader


def run(options: argparse.Namespace) -> None:
    """Print what was found."""
    config = options.config_file or str(Path(options.file).absolute().parent.parent / "config.yaml")
    print(replay_step(load_config(config, options.opts), options.file))


main = command(reader, run)
