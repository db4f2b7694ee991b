# SPDX-License-Identifier: Apache-2.0
"""The ViT-like host with a class token, as DeiT has it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from visionattn.kernels.pattern import ceil_div
from visionattn.layers import ClassTokenEmbedding, init_linear, split_class

from ._isotropic import Isotropic


class ClassTokenHost(Isotropic):
    """`Isotropic` whose blocks mix tokens `(B, 1 + H * W, C)`, the class token first.

    The last output is tokens; features are the maps `(B, H, W, C)` of the others. Mixers must take a class token.

    Args:
        dim: Channels of the tokens.
        map_size: `(height, width)` of the map that the position table is made for.
        global_pool: "token" reads the class token, "avg" and "max" the others, "" all.
        **kwargs: Of `Isotropic`.
    """

    def __init__(self, dim: int, map_size: tuple[int, int], global_pool: str = "token", **kwargs: Any) -> None:
        super().__init__(dim=dim, patch_norm=False, norm_eps=1e-6, **kwargs)
        self.pos_embed = ClassTokenEmbedding(dim, map_size)
        self._add_head(dim, global_pool, kwargs.get("drop_rate", 0.0), "token")
        init_linear(self.head.fc)

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs blocks 0..last; returns the last tokens and the maps asked for."""
        tokens = self.embed(x)
        size = (ceil_div(x.shape[2], self.stem.stride), ceil_div(x.shape[3], self.stem.stride))
        taken: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks[: last + 1]):
            tokens = self.run_block(block, tokens, size)
            if i in take:
                taken[i] = split_class(tokens, size)[1]
        return tokens, taken
