#!/usr/bin/env python
"""See mokd_det/tools/paper.py and parsers/paper.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("paper"))
