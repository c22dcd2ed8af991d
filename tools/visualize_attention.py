#!/usr/bin/env python
"""See mokd_det/tools/visualize_attention.py and parsers/visualize_attention.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("visualize_attention"))
