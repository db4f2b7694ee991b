# SPDX-License-Identifier: Apache-2.0
"""`visionattn tune` from a checkout: `python tools/tune.py --help`."""

import sys

from visionattn.cli import main

main(["tune", *sys.argv[1:]])
