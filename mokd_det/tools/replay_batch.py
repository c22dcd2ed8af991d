"""Run a step again that was refused for NaN or infinity, and say where they begin.

The command line: :mod:`mokd_det.tools.parsers.replay_batch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mokd_det.config import load_config
from mokd_det.exit_status import exit_status
from mokd_det.guard.replay import replay_step
from mokd_det.tools.parsers.replay_batch import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    config = options.config_file or str(Path(options.file).absolute().parent.parent / "config.yaml")
    return exit_status(lambda: print(replay_step(load_config(config, options.opts), options.file)))
