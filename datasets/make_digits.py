#!/usr/bin/env python
"""Generate the bundled detection data: scenes of scikit-learn's handwritten digits (see datasets/README.md).

python datasets/make_digits.py                 # digits and digits_hard below $DETECTRON2_DATASETS or
datasets/ python datasets/make_digits.py digits --seed 1 --root elsewhere
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mokd_det.data.builtin import datasets_root
from mokd_det.data.digits import DEFAULT_COUNTS, KINDS, SPLITS, generate
from mokd_det.errors import MoKDError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (0, or 2 after a wrong argument)."""
    parser = argparse.ArgumentParser(description="Generate digit detection scenes in COCO format.")
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{' or '.join(KINDS)} (default: all)")
    parser.add_argument(
        "--root", type=Path, default=datasets_root(), help="folder of all data sets (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides every image (%(default)s)")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", type=int, default=DEFAULT_COUNTS[split], help="images (%(default)s)"
        )
    options = parser.parse_args(arguments)
    counts = {split: getattr(options, split) for split in SPLITS}
    try:
        for kind in options.kinds or KINDS:
            start = time.perf_counter()
            if generate(kind, options.root, seed=options.seed, counts=counts):
                seconds = time.perf_counter() - start
                print(f"{options.root / kind}: {sum(counts.values())} images, {seconds:.1f} s")
            else:
                print(f"{options.root / kind}: already there")
    except MoKDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
