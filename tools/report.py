#!/usr/bin/env python
"""See mokd_det/tools/report.py and parsers/report.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("report"))
