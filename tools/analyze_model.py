#!/usr/bin/env python
"""See mokd_det/tools/analyze_model.py and parsers/analyze_model.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("analyze_model"))
