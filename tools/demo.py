#!/usr/bin/env python
"""See mokd_det/tools/demo.py and parsers/demo.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("demo"))
