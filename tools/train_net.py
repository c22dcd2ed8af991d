#!/usr/bin/env python
"""Train or evaluate what a LazyConfig file describes: see mokd_det/tools/train_net.py."""

import sys

from mokd_det.tools.train_net import main

if __name__ == "__main__":
    sys.exit(main())
