# SPDX-License-Identifier: Apache-2.0
"""`visionattn zoo` from a checkout: `python tools/zoo.py --help`."""

import sys

from visionattn.cli import main

main(["zoo", *sys.argv[1:]])
