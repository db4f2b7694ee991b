# SPDX-License-Identifier: Apache-2.0
"""The hosts of Gramian attention heads: pyramids whose maps come together at the third stage's resolution."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.layers import DropPath, SEModule
from torch import Tensor, nn
from torch.nn import functional as F

from visionattn.layers import (
    BatchNorm,
    Block,
    CrossShapedAttention,
    GramianHead,
    GramianToken,
    NestedBlock,
    average_cells,
    create_mixer,
    init_conv,
    init_linear,
)

from ._base import drop_path_rates
from ._pyramid import CONVNEXT, Pyramid, Stage
from .cswin import cswin_args


class ExcitedBottleneck(nn.Module):
    """Residual bottleneck of convolutions, its inner channels weighed by squeeze and excitation.

    Args:
        dim: Channels of the map.
        out_dim: Channels of the result, four times the inner ones.
        drop_path: Probability that a sample skips the branch in training.

    Paper: Squeeze-and-Excitation Networks, arXiv 1709.01507.
    """

    def __init__(self, dim: int, out_dim: int, drop_path: float = 0.0) -> None:
        super().__init__()
        width = out_dim // 4
        self.shortcut = nn.Sequential(nn.Conv2d(dim, out_dim, 1), BatchNorm(out_dim))
        self.conv1, self.norm1 = nn.Conv2d(dim, width, 1, bias=False), BatchNorm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), BatchNorm(width)
        self.se = SEModule(width, rd_ratio=1 / 4, rd_divisor=8)
        self.conv3, self.norm3 = nn.Conv2d(width, out_dim, 1, bias=False), BatchNorm(out_dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(B, H, W, dim)` to `(B, H, W, out_dim)`."""
        x = x.permute(0, 3, 1, 2)
        out = F.relu(self.norm1(self.conv1(x)))
        out = self.se(F.relu(self.norm2(self.conv2(out))))
        out = F.relu(self.shortcut(x) + self.drop_path(self.norm3(self.conv3(out))))
        return out.permute(0, 2, 3, 1)


class JoinedPyramid(Pyramid):
    """Pyramid of four stages whose head reads maps of all of them, joined at the third stage's resolution.

    The first two stages' maps are averaged, the last one's is resized bilinearly, and some maps from within the third
    stage come along.

    Args:
        depths: Blocks of each of the four stages.
        dims: Channels of each stage; the joined map has as many as the last.
        num_heads: Heads of each stage's mixer.
        inner_maps: Maps from within the third stage, evenly spread over its blocks.
        joint: Makes what joins the concatenated maps, from `(channels, out_channels, drop_path)`.
        global_pool: Pooling of the head.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Drop-path rate of the last block and of what follows, rising linearly from 0.
        head: Makes the head from `(channels, classes, pooling, drop rate)` and `drop_path`.
        **kwargs: Of `Pyramid`.

    Raises:
        ValueError: If there are not four stages, or `inner_maps` is not less than the third stage's blocks.

    Paper: Gramian Attention Heads are Strong yet Efficient Vision Learners, arXiv 2310.16483.
    """

    def __init__(
        self,
        depths: Sequence[int],
        dims: Sequence[int],
        num_heads: Sequence[int],
        inner_maps: int,
        joint: Callable[[int, int, float], nn.Module],
        head: Callable[..., nn.Module],
        global_pool: str = "gram",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if len(depths) != 4:
            raise ValueError(f"depths={tuple(depths)} must have four entries, one for each stage")
        if not 0 <= inner_maps < depths[2]:
            raise ValueError(f"inner_maps={inner_maps} must be less than the third stage's {depths[2]} blocks")
        super().__init__(
            depths, dims, num_heads, global_pool="", drop_path_rate=drop_path_rate,
            **{**kwargs, "final_norm": False, "own_last_norm": True},
        )  # fmt: skip
        self.inner_maps, self.every = inner_maps, depths[2] // (inner_maps + 1)
        rate = drop_path_rates(drop_path_rate, depths)[-1][-1]
        self.joint: nn.Module | None = joint(sum(dims) + inner_maps * dims[2], dims[-1], rate)
        self._add_head(dims[-1], global_pool, drop_rate, lambda *args: head(*args, drop_path=rate))
        for part in (self.joint, self.head):
            part.apply(init_linear)

    def set_branch_training(self, enable: bool = True) -> None:
        """Whether the model returns a list of each token's logits in training, not their sum."""
        self.head.trains_branches = enable

    def _walk(self, x: Tensor, take: Sequence[int], last: int) -> tuple[Tensor, dict[int, Tensor]]:
        x = self.embed(x)
        maps: list[Tensor] = []
        inner: list[Tensor] = []
        for i, level in enumerate(self.levels[: last + 1]):
            if i > 0:
                x = self.advance(i - 1, x)
            stage = cast(Stage, level)
            for number, block in enumerate(stage.blocks, 1):
                x = self.run_block(block, x)
                if number == 1:
                    x = stage.position(x)
                if i == 2 and number % self.every == 0 and len(inner) < self.inner_maps:
                    inner.append(x)
            x = stage.norm(x)
            maps.append(x)
        taken = {i: maps[i] for i in take}
        if self.joint is None or last < 3:
            return x, taken
        return self.joint(_joined(maps, inner)), taken

    def _end_at(self, level: int) -> None:
        self.joint = None
        self.stages[level].down = nn.Identity()
        pool = "avg" if self.head.pool_type == "gram" else self.head.pool_type
        self._add_head(self.feature_info[level]["num_chs"], pool, self.head.drop.p)

    def _drop_final_norm(self, take: Sequence[int]) -> None:
        self.joint = None  # like a final norm, it is the classifier's alone


def _joined(maps: Sequence[Tensor], inner: Sequence[Tensor]) -> Tensor:
    """Maps of four stages, and those from within the third, side by side at the third's resolution."""
    size = (maps[2].shape[1], maps[2].shape[2])
    fine = [average_cells(x, size) for x in maps[:2]]
    coarse = F.interpolate(maps[3].permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
    return torch.cat([*fine, *inner, maps[2], coarse.permute(0, 2, 3, 1)], -1)


def ga_convnext(
    depths: Sequence[int] = (3, 3, 9, 3),
    dims: Sequence[int] = (96, 192, 384, 688),
    attn_dim: int = 168,
    gram_dim: int = 192,
    branches: int = 5,
    inner_maps: int = 2,
    embedding_groups: int = 8,
    gram_layer: bool = True,
    layer_scale: float = 1e-6,
    mixers: str | Sequence[str | Sequence[str]] = "depthwise",
    num_heads: Sequence[int] = (1, 1, 1, 1),
    **kwargs: Any,
) -> JoinedPyramid:
    """ConvNeXt with Gramian attention heads.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        attn_dim: Channels of the heads' queries, keys and values.
        gram_dim: Channels whose products make a class token.
        branches: Number of heads.
        inner_maps: Maps from within the third stage that the heads read.
        embedding_groups: Groups of the layer that makes a token of the products.
        gram_layer: Whether a block comes before the products.
        layer_scale: Initial value of per-channel factors on the branches of blocks.
        mixers: Other token mixers, as `Pyramid` takes them.
        num_heads: Heads of other token mixers.
        **kwargs: Of `JoinedPyramid`.
    """

    def layer(dim: int, drop_path: float) -> nn.Module:
        mixer = create_mixer("depthwise", dim, 1)
        return NestedBlock(dim, mixer, layer_scale=layer_scale, drop_path=drop_path, norm_eps=1e-6)

    token = {"gram_dim": gram_dim, "attn_dim": attn_dim, "embedding_groups": embedding_groups,
             "layer": layer if gram_layer else None}  # fmt: skip
    model = JoinedPyramid(
        depths,
        dims,
        num_heads,
        inner_maps,
        ExcitedBottleneck,
        partial(_head, token, branches),
        mixers=mixers,
        layer_scale=layer_scale,
        block=lambda stage, block: NestedBlock,
        **{**CONVNEXT, **kwargs},
    )
    model.apply(init_conv)
    return model


def ga_cswin(
    depths: Sequence[int] = (1, 2, 21, 1),
    dims: Sequence[int] = (64, 128, 256, 512),
    num_heads: Sequence[int] = (2, 4, 8, 16, 16),
    stripe_widths: Sequence[int] = (1, 2, 7, 7, 7),
    img_size: int = 224,
    gram_dim: int = 192,
    branches: int = 5,
    inner_maps: int = 4,
    gram_layer: bool = True,
    bottleneck: bool = False,
    deep_stem: bool = True,
    joint_mlp: str = "mlp",
    gram_mlp: str = "mlp",
    token_mlp_groups: int = 2,
    **kwargs: Any,
) -> JoinedPyramid:
    """CSWin Transformer with Gramian attention heads.

    Args:
        depths: Blocks of each stage.
        dims: Channels of each stage.
        num_heads: Heads of each stage, and of the block that joins their maps.
        stripe_widths: Pixels across the stripes of each stage, and of the blocks at the heads.
        img_size: Side of the images that stripes are made for; images of other sizes are taken too.
        gram_dim: Channels whose products make a class token.
        branches: Number of heads.
        inner_maps: Maps from within the third stage that the heads read.
        gram_layer: Whether a block comes before the products.
        bottleneck: Whether maps are joined by a convolutional bottleneck instead of a block.
        deep_stem: Whether the stem has three convolutions instead of one.
        joint_mlp: Name of the MLP of the block that joins the maps, one of `visionattn.layers.MLPS`.
        gram_mlp: Name of the MLP of the block before the products.
        token_mlp_groups: Groups of the class tokens' MLPs.
        **kwargs: Of `JoinedPyramid`.
    """
    width = stripe_widths[4]

    def joint(dim: int, out_dim: int, drop_path: float) -> nn.Module:
        if bottleneck:
            return ExcitedBottleneck(dim, out_dim, drop_path)
        block = Block(out_dim, CrossShapedAttention(out_dim, num_heads[4], width), mlp=joint_mlp, drop_path=drop_path)
        return nn.Sequential(nn.Linear(dim, out_dim), nn.LayerNorm(out_dim), block)

    def layer(dim: int, drop_path: float) -> nn.Module:
        return Block(dim, CrossShapedAttention(dim, 6, width), mlp=gram_mlp, drop_path=drop_path)

    token = {"gram_dim": gram_dim, "attn_dim": dims[-1] // 4, "contraction_groups": 8, "mlp_groups": token_mlp_groups,
             "layer": layer if gram_layer else None}  # fmt: skip
    return JoinedPyramid(
        depths,
        dims,
        num_heads[:4],
        inner_maps,
        joint,
        partial(_head, token, branches),
        stem="deep" if deep_stem else "overlap",
        stem_args={} if deep_stem else {"padding": 2},
        downsample="conv",
        downsample_args={"bias": True},
        mixers="cross_shaped",
        mixer_args=lambda stage, block: cswin_args(stripe_widths[:4], img_size, stage),
        **kwargs,
    )


def _head(token: Mapping[str, Any], branches: int, *args: Any, drop_path: float) -> GramianHead:
    return GramianHead(*args, token=partial(GramianToken, drop_path=drop_path, **token), branches=branches)


def ga(host: str = "convnext", **kwargs: Any) -> JoinedPyramid:
    """Gramian attention heads over `host`, "convnext" or "cswin"; arguments as `ga_convnext` and `ga_cswin` take them.

    Raises:
        ValueError: If there is no such host.
    """
    if host not in HOSTS:
        raise ValueError(f"host={host!r} must be one of {tuple(HOSTS)}")
    return HOSTS[host](**kwargs)


HOSTS = {"convnext": ga_convnext, "cswin": ga_cswin}
