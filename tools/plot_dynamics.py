#!/usr/bin/env python
"""See mokd_det/tools/plot_dynamics.py and parsers/plot_dynamics.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("plot_dynamics"))
