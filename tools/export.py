#!/usr/bin/env python
"""See mokd_det/tools/export.py and parsers/export.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("export"))
