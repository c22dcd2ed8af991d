#!/usr/bin/env python
"""See mokd_det/tools/visualize_attention.py and parsers/visualize_attention.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("visualize_attention"))
