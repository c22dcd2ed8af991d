#!/usr/bin/env python
"""See mokd_det/tools/paper.py and parsers/paper.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("paper"))
