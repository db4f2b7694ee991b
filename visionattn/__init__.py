# SPDX-License-Identifier: Apache-2.0
"""Attention ops for vision, tile by tile."""

__version__ = "0.1.0"
