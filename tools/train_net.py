#!/usr/bin/env python
"""See mokd_det/tools/train_net.py and parsers/train_net.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("train_net"))
