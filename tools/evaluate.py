# SPDX-License-Identifier: Apache-2.0
"""`visionattn evaluate` from a checkout: `python tools/evaluate.py --help`."""

import sys

from visionattn.cli import main

main(["evaluate", *sys.argv[1:]])
