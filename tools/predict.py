# SPDX-License-Identifier: Apache-2.0
"""`visionattn predict` from a checkout: `python tools/predict.py --help`."""

import sys

from visionattn.cli import main

main(["predict", *sys.argv[1:]])
