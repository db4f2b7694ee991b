# SPDX-License-Identifier: Apache-2.0
"""`visionattn benchmark` from a checkout: `python tools/benchmark.py --help`."""

import sys

from visionattn.cli import main

main(["benchmark", *sys.argv[1:]])
