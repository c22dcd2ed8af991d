#!/usr/bin/env python
"""See mokd_det/tools/convert_checkpoint.py and parsers/convert_checkpoint.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("convert_checkpoint"))
