#!/usr/bin/env python
"""See mokd_det/tools/check_dataset.py and parsers/check_dataset.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("check_dataset"))
