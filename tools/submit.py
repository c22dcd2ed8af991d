#!/usr/bin/env python
"""See mokd_det/tools/submit.py and parsers/submit.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("submit"))
