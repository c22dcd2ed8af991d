#!/usr/bin/env python
"""See mokd_det/tools/convert_checkpoint.py and parsers/convert_checkpoint.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("convert_checkpoint"))
