#!/usr/bin/env python
"""See mokd_det/tools/make_digits.py and parsers/make_digits.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("make_digits"))
