"""Generate the bundled detection data: scenes of scikit-learn's handwritten digits, in COCO format.

The command line: :mod:`mokd_det.tools.parsers.make_digits`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from mokd_det.data.builtin import datasets_root
from mokd_det.data.digits import KINDS, SPLITS, generate
from mokd_det.exit_status import exit_status
from mokd_det.tools.parsers.make_digits import parse


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Generate what is not there yet."""
    root = options.root or datasets_root()
    counts = {split: getattr(options, split) for split in SPLITS}
    for kind in options.kinds or KINDS:
        start = time.perf_counter()
        if generate(kind, root, seed=options.seed, counts=counts):
            print(f"{root / kind}: {sum(counts.values())} images, {time.perf_counter() - start:.1f} s")
        else:
            print(f"{root / kind}: already there")
