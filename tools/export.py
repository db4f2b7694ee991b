# SPDX-License-Identifier: Apache-2.0
"""`visionattn export` from a checkout: `python tools/export.py --help`."""

import sys

from visionattn.cli import main

main(["export", *sys.argv[1:]])
