# SPDX-License-Identifier: Apache-2.0
"""The NATTEN release whose interface is answered where two of them contradict each other."""

import re

NEWEST = "0.21.6"
OLDEST = (0, 14)

current = NEWEST


def parse(version: str) -> tuple[int, int]:
    """Major and minor number.

    Raises:
        ValueError: It is no version, or one before 0.14.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:$|[.+])", version)
    parsed = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if parsed < OLDEST:
        raise ValueError(f"version={version!r} is not allowed; use a NATTEN release from 0.14 on, such as {NEWEST!r}")
    return parsed
