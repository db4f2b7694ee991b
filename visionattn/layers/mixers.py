# SPDX-License-Identifier: Apache-2.0
"""Token mixers by name, so that any host can take any of them."""

from typing import Any

from torch import nn

from .attention import GlobalAttention, NeighborhoodAttention, WindowAttention
from .names import pick

MIXERS: dict[str, type[nn.Module]] = {
    "neighborhood": NeighborhoodAttention,
    "window": WindowAttention,
    "global": GlobalAttention,
}


def create_mixer(name: str, dim: int, num_heads: int, **kwargs: Any) -> nn.Module:
    """Token mixer `name` for maps of `dim` channels; `kwargs` go to its constructor.

    Raises:
        ValueError: If no mixer has that name; the nearest ones are offered.
    """
    return pick("mixer", name, MIXERS)(dim, num_heads, **kwargs)
