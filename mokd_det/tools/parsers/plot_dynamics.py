"""Draw how objectives pull at a model, of several runs side by side: losses, weights, conflict, dominance.

    python tools/plot_dynamics.py output/demo/runs/student_seed0 output/demo/runs/mokd_seed0 --output dynamics.png
    python tools/plot_dynamics.py RUN RUN --labels MoKD "fixed weights" --output dynamics.png

A run is an output directory of tools/train_net.py, finished or not. Conflict and dominance appear where the
run's balancer, or a diagnostics hook, has logged them. Exit status: 0; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

__all__ = ["parse"]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output directory of a run")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.png", help="the picture")
    parser.add_argument(
        "--labels", nargs="+", metavar="TEXT", help="one name per run (default: the directories')"
    )
    parser.add_argument("--title", default="", metavar="TEXT", help="written above everything")
    return parser.parse_args(arguments)
