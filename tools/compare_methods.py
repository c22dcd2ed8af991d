#!/usr/bin/env python
"""See mokd_det/tools/compare_methods.py and parsers/compare_methods.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("compare_methods"))
