#!/usr/bin/env python
"""See mokd_det/tools/make_digits.py and parsers/make_digits.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("make_digits"))
