#!/usr/bin/env python
"""See mokd_det/tools/plot_dynamics.py and parsers/plot_dynamics.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("plot_dynamics"))
