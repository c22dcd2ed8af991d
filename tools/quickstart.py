#!/usr/bin/env python
"""The quick start on bundled data; see mokd_det/tools/quickstart.py."""

import sys

from mokd_det.tools.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
