#!/usr/bin/env python
"""Compare distillation methods fairly; see mokd_det/tools/compare_methods.py."""

import sys

from mokd_det.tools.compare_methods import main

if __name__ == "__main__":
    sys.exit(main())
