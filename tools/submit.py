#!/usr/bin/env python
"""See mokd_det/tools/submit.py and parsers/submit.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("submit"))
