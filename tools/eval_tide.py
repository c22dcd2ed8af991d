#!/usr/bin/env python
"""See mokd_det/tools/eval_tide.py and parsers/eval_tide.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("eval_tide"))
