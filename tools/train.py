# SPDX-License-Identifier: Apache-2.0
"""`visionattn train` from a checkout: `python tools/train.py --help`."""

import sys

from visionattn.cli import main

main(["train", *sys.argv[1:]])
