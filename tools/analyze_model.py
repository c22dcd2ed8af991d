#!/usr/bin/env python
"""See mokd_det/tools/analyze_model.py and parsers/analyze_model.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("analyze_model"))
