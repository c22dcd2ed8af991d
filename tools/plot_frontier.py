#!/usr/bin/env python
"""See mokd_det/tools/plot_frontier.py and parsers/plot_frontier.py there."""

import sys

from mokd_det.tools import start

if __name__ == "__main__":
    sys.exit(start("plot_frontier"))
