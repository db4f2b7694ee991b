# SPDX-License-Identifier: Apache-2.0
"""Hosts with a class token: from the first block on, as DeiT has it, or in the last stage of a pyramid."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from visionattn.kernels.pattern import ceil_div
from visionattn.layers import ClassTokenEmbedding, init_linear, pool_type_of, split_class

from ._isotropic import Isotropic
from ._pyramid import Pyramid, Stage


class ClassTokenHost(Isotropic):
    """`Isotropic` whose blocks mix tokens `(B, 1 + H * W, C)`, the class token first.

    The last output is tokens; features are the maps `(B, H, W, C)` of the others. Mixers must take a class token.

    Args:
        dim: Channels of the tokens.
        map_size: `(height, width)` of the map that the position table is made for.
        global_pool: "token" reads the class token, "avg" and "max" the others, "" all.
        norm_eps: Added to the variance by the norms.
        **kwargs: Of `Isotropic`.
    """

    def __init__(
        self,
        dim: int,
        map_size: tuple[int, int],
        global_pool: str = "token",
        norm_eps: float = 1e-6,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim=dim, patch_norm=False, norm_eps=norm_eps, **kwargs)
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


class ClassTokenPyramid(Pyramid):
    """`Pyramid` whose last stage reads tokens `(B, 1 + H * W, C)`, the class token first, as the first PVT had it.

    The last output is tokens, and so the mixers of that stage must take; features are maps.

    Args:
        dims: Channels of each stage; at least two.
        last_map_size: `(height, width)` of the last map that its position table is made for.
        class_token: Whether there is a class token; backbones of detectors and segmentors have none, nor a head for it.
        global_pool: "token" reads the class token, "avg" and "max" the others, "" all.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If there are fewer than two stages.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        *args: Any,
        last_map_size: tuple[int, int],
        class_token: bool = True,
        global_pool: str | None = None,
        **kwargs: Any,
    ) -> None:
        if len(dims) < 2:
            raise ValueError(f"dims={tuple(dims)} must have at least 2 stages")
        super().__init__(depths, dims, *args, **kwargs)
        self.has_token = class_token
        self.tokens: nn.Module = ClassTokenEmbedding(dims[-1], last_map_size, "bilinear", class_token)
        pool = global_pool or ("token" if class_token else "avg")
        self._add_head(dims[-1], pool, kwargs.get("drop_rate", 0.0), "token" if class_token else "linear")
        init_linear(self.head.fc)

    def advance(self, level: int, x: Tensor) -> Tensor:
        """Downsamples the feature of stage `level`; what the last stage starts from has its positions."""
        x = super().advance(level, x)
        return self.tokens(x) if level == len(self.stages) - 2 and not self.has_token else x

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Runs stages 0..last; returns the last tokens and the maps asked for."""
        final = len(self.stages) - 1
        if last < final or not self.has_token:
            return super()._walk(x, take, last)
        x, taken = super()._walk(x, take, final - 1)
        x = self.advance(final - 1, x)
        size = (x.shape[1], x.shape[2])
        tokens = self.tokens(x)
        for block in cast(Stage, self.stages[final]).blocks:
            tokens = self.run_block(block, tokens, size)
        if final in take:
            taken[final] = split_class(tokens, size)[1]
        return tokens, taken

    def _end_at(self, level: int) -> None:
        self.tokens, self.has_token = nn.Identity(), False
        if pool_type_of(self.head) == "token":
            self.head.pool_type = "avg"
        super()._end_at(level)
