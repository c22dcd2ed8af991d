"""The main job on bundled data: a teacher, a student alone, the same student with MoKD; minutes on two cores.

The command line: :mod:`mokd_det.tools.parsers.quickstart`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mokd_det.experiments.quickstart import quickstart
from mokd_det.experiments.quickstart_tasks import TASKS
from mokd_det.experiments.training_runs import run_command
from mokd_det.tools.parsers.quickstart import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = chosen(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return run_command(lambda lock: quickstart(options, lock), options.output, given)


def chosen(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with the task itself and its number of images."""
    options = parse(arguments)
    options.task = TASKS[options.task]
    options.images = options.images or options.task.images
    return options
