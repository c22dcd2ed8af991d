#!/usr/bin/env python
"""See mokd_det/tools/fetch.py and parsers/fetch.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("fetch"))
