"""Compare distillation methods fairly: methods x replicates x students on any config, one table, one picture.

The command line: :mod:`mokd_det.tools.parsers.compare_methods`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mokd_det.experiments.compare_methods import compare_methods, compare_records
from mokd_det.experiments.training_runs import run_command
from mokd_det.tools.parsers.compare_methods import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(given)
    if options.records:
        return run_command(lambda lock: compare_records(options, given), options.output, given)
    return run_command(lambda lock: compare_methods(options, given, lock), options.output, given)
