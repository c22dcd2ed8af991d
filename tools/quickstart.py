#!/usr/bin/env python
"""See mokd_det/tools/quickstart.py and parsers/quickstart.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("quickstart"))
