#!/usr/bin/env python
"""See mokd_det/tools/replay_batch.py and parsers/replay_batch.py there."""

from mokd_det.tools import start

if __name__ == "__main__":
    raise SystemExit(start("replay_batch"))
