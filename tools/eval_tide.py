#!/usr/bin/env python
"""See mokd_det/tools/eval_tide.py and parsers/eval_tide.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("eval_tide"))
