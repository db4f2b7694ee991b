# SPDX-License-Identifier: Apache-2.0
"""`visionattn doctor` from a checkout: `python tools/doctor.py --help`."""

import sys

from visionattn.cli import main

main(["doctor", *sys.argv[1:]])
