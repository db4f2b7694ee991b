# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments that many layers take."""


def check_odd(argument: str, value: int) -> None:
    """Raise ValueError unless a kernel's or window's side is odd and positive."""
    if value < 1 or value % 2 == 0:
        raise ValueError(f"{argument}={value} must be odd and positive")


def check_heads(dim: int, num_heads: int) -> None:
    """Raise ValueError unless `num_heads` divides `dim`."""
    if num_heads < 1 or dim % num_heads != 0:
        raise ValueError(f"num_heads={num_heads} must be a positive divisor of dim={dim}")
