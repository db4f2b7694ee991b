# SPDX-License-Identifier: Apache-2.0
"""`visionattn convert` from a checkout: `python tools/convert.py --help`."""

import sys

from visionattn.cli import main

main(["convert", *sys.argv[1:]])
