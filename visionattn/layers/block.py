# SPDX-License-Identifier: Apache-2.0
"""The transformer block, around any token mixer."""

from collections.abc import Callable
from typing import Any

from timm.layers import DropPath, LayerScale
from torch import Tensor, nn

from .embed import ConditionalPosition
from .mlp import MLPS
from .names import pick
from .norm import create_norm


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + mlp(norm(x))`, each branch scaled and dropped as asked.

    Args:
        dim: Channels of the map.
        mixer: Module that maps `(B, H, W, C)` to the same shape; None for a block of the MLP alone.
        mlp_ratio: Hidden width of the MLP over `dim`.
        layer_scale: Initial value of the per-channel factors on the branches; None leaves the factors out.
        proj_drop: Dropout inside the MLP.
        drop_path: Probability that a sample skips a branch in training.
        norm_eps: Added to the variance by the norms.
        post_norm: Norm what a branch returns instead of what it reads: `x + norm(mixer(x))`. Every branch starts as
            zero then.
        norm_sums: Norm the sum of a branch and its input instead: `norm(x + mixer(x))`.
        mlp: Name of the MLP, one of `visionattn.layers.MLPS`; None for a block of the mixer alone.
        position: Whether a convolution that encodes positions comes first.
        norm_layer: Name of the norms, one of `visionattn.layers.NORMS`.
        input_scale: Initial value of per-channel factors on what branches are added to; None leaves them out.

    Raises:
        ValueError: If no MLP has that name, or there is neither mixer nor MLP.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module | None,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        post_norm: bool = False,
        mlp: str | None = "mlp",
        position: bool = False,
        norm_sums: bool = False,
        norm_layer: str = "layer",
        input_scale: float | None = None,
    ) -> None:
        super().__init__()
        if mixer is None and mlp is None:
            raise ValueError("mixer=None and mlp=None leave nothing for the block to do")
        self.post_norm, self.norm_sums = post_norm, norm_sums
        self.position = ConditionalPosition(dim) if position else nn.Identity()
        self.attn, self.mlp = mixer, None
        if mixer is not None:
            self.norm1 = create_norm(norm_layer, dim, norm_eps)
            self.scale1 = _factors(dim, layer_scale)
            self.input_scale1 = _factors(dim, input_scale)
        if mlp is not None:
            self.norm2 = create_norm(norm_layer, dim, norm_eps)
            self.mlp = pick("mlp", mlp, MLPS)(dim, int(dim * mlp_ratio), drop=proj_drop)
            self.scale2 = _factors(dim, layer_scale)
            self.input_scale2 = _factors(dim, input_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        if post_norm:
            for name in ("norm1", "norm2"):
                if hasattr(self, name):
                    nn.init.zeros_(getattr(self, name).weight)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape; or tokens `(B, 1 + H * W, C)` of a map of `size`.

        A mixer is called with what the block reads too where its `takes_input` is true.
        """
        return self._feed(self._mix(x, size))

    def _mix(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        x = self.position(x)
        more = (size,) if size is not None else (x,) if getattr(self.attn, "takes_input", False) else ()
        if self.attn is None:
            return x
        return self._with_branch(self.attn, self.norm1, self.scale1, self.input_scale1, x, *more)

    def _feed(self, x: Tensor) -> Tensor:
        if self.mlp is None:
            return x
        return self._with_branch(self.mlp, self.norm2, self.scale2, self.input_scale2, x)

    def _with_branch(
        self, layer: nn.Module, norm: nn.Module, scale: nn.Module, input_scale: nn.Module, x: Tensor, *more: Any
    ) -> Tensor:
        if self.norm_sums:
            return norm(input_scale(x) + self.drop_path(scale(layer(x, *more))))
        branch = scale(norm(layer(x, *more)) if self.post_norm else layer(norm(x), *more))
        return input_scale(x) + self.drop_path(branch)


class BilateralBlock(Block):
    """A block with a second mixer between the first and the MLP: `x + content(norm(x))`.

    Args:
        dim: Channels of the map.
        mixer: As of `Block`; None for the second mixer alone.
        mlp_ratio: As of `Block`.
        layer_scale: As of `Block`; the second mixer has no factors.
        proj_drop: As of `Block`; of the second mixer too.
        drop_path: As of `Block`.
        content: Makes the second mixer from `dim` and `proj_drop`.
        drop_content: Whether a sample may skip the second mixer in training.
        **kwargs: Of `Block`.

    Raises:
        ValueError: If branches are to be normed otherwise than before they begin.

    Paper: BOAT: Bilateral Local Attention Vision Transformer, arXiv 2201.13027.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module | None,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        *,
        content: Callable[..., nn.Module],
        drop_content: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, mixer, mlp_ratio, layer_scale, proj_drop, drop_path, **kwargs)
        if self.post_norm or self.norm_sums:
            raise ValueError("post_norm and norm_sums must be False in blocks with a second mixer")
        self.norm3 = create_norm(kwargs.get("norm_layer", "layer"), dim, kwargs.get("norm_eps", 1e-5))
        self.content = content(dim, proj_drop=proj_drop)
        self.drop_content = drop_content

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        x = self._mix(x, size)
        content = self.content(self.norm3(x))
        return self._feed(x + (self.drop_path(content) if self.drop_content else content))


class NestedBlock(nn.Module):
    """`x + mlp(norm(mixer(x)))`: the MLP reads what the mixer returns, and one skip goes around both.

    Args:
        dim: Channels of the map.
        mixer: Module that maps `(B, H, W, C)` to the same shape.
        mlp_ratio: Hidden width of the MLP over `dim`.
        layer_scale: Initial value of the per-channel factors on the MLP; None leaves the factors out.
        proj_drop: Dropout inside the MLP.
        drop_path: Probability that a sample skips the MLP in training, and the mixer if the skip is one.
        norm_eps: Added to the variance by the norm.
        mlp: Name of the MLP, one of `visionattn.layers.MLPS`.
        norm_layer: Name of the norm, one of `visionattn.layers.NORMS`.
        norm: Whether there is a norm.
        mixer_skip: Whether the mixer has a skip of its own, which ends before the MLP's begins.
        **others: Options that `Block` has and this does not, all off.

    Raises:
        ValueError: If no MLP has that name, or an option of `Block` is asked for.

    Paper: A ConvNet for the 2020s, arXiv 2201.03545; FasterNet, arXiv 2303.03667.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
        mlp: str = "mlp",
        norm_layer: str = "layer",
        norm: bool = True,
        mixer_skip: bool = False,
        **others: Any,
    ) -> None:
        super().__init__()
        for name, value in others.items():
            if value not in (None, False):
                raise ValueError(f"{name}={value!r} is no option of blocks with one skip around mixer and MLP")
        self.mixer_skip = mixer_skip
        self.attn = mixer
        self.norm = create_norm(norm_layer, dim, norm_eps) if norm else nn.Identity()
        self.mlp = pick("mlp", mlp, MLPS)(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.scale = _factors(dim, layer_scale)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, C)` to the same shape."""
        mixed = self.attn(x)
        if self.mixer_skip:
            x = mixed = x + mixed
        return x + self.drop_path(self.scale(self.mlp(self.norm(mixed))))


def _factors(dim: int, initial: float | None) -> nn.Module:
    """Per-channel factors, or none."""
    return nn.Identity() if initial is None else LayerScale(dim, initial)
