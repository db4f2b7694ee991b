# SPDX-License-Identifier: Apache-2.0
"""`python -m visionattn.cli`, as torchrun starts it."""

from visionattn.cli import main

main()
