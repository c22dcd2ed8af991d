"""Generate the bundled detection data: scenes of scikit-learn's handwritten digits, in COCO format.

The command line: :mod:`mokd_det.tools.parsers.make_digits`.
"""

from __future__ import annotations

import argparse
import time

from mokd_det.data.builtin import datasets_root
from mokd_det.data.digits import KINDS, SPLITS, generate
from mokd_det.tools import command
from mokd_det.tools.parsers import make_digits as reader


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


main = command(reader, run)
