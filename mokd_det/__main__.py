"""``python -m mokd_det NAME ...``: the commands of :mod:`mokd_det.tools`, with or without a checkout."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mokd_det.tools import start

# Name on the command line → module of mokd_det.tools. The files of the same names in tools/ and datasets/ start
# the same.
COMMANDS = {
    "analyze": "analyze_model",
    "attention": "visualize_attention",
    "check": "check_dataset",
    "compare": "compare_methods",
    "convert": "convert_checkpoint",
    "demo": "demo",
    "digits": "make_digits",
    "dynamics": "plot_dynamics",
    "export": "export",
    "fetch": "fetch",
    "frontier": "plot_frontier",
    "paper": "paper",
    "quickstart": "quickstart",
    "replay": "replay_batch",
    "report": "report",
    "submit": "submit",
    "tide": "eval_tide",
    "train": "train_net",
}


def main(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit status."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print("usage: python -m mokd_det COMMAND ...; each COMMAND explains itself with --help\n")
        print("commands: " + ", ".join(COMMANDS))
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command '{name}'; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv[:] = [f"python -m mokd_det {name}", *arguments[1:]]
    return start(COMMANDS[name], arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
