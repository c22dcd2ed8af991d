#!/usr/bin/env python
"""See mokd_det/tools/fetch.py and parsers/fetch.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("fetch"))
