# SPDX-License-Identifier: Apache-2.0
"""Stems and downsamplers: where a map changes its resolution. All return `(B, H, W, C)`."""

import torch
from timm.layers import get_act_layer
from torch import Tensor, nn

from visionattn.kernels.pattern import ceil_div, is_symbolic

from .attention import resize_table
from .batch_norm import BatchNorm
from .init import init_table
from .merging import DeformableMerging
from .norm import create_norm
from .padding import pad_map, pad_to_multiple, pad_to_patch


class ConvStem(nn.Module):
    """Image `(B, C, H, W)` to a map at stride 4: two overlapping 3x3 convolutions, then a norm.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map, even.
        norm_layer: Name of the norms, one of `visionattn.layers.NORMS`.
        norm_eps: Added to the variance by the norms.
        mid_norm: Whether there is a norm between the convolutions too.
        act: Activation between the convolutions, as timm names it; None for none.

    Paper: Neighborhood Attention Transformer, arXiv 2204.07143.
    """

    first_conv = "proj.0"
    stride = 4
    rounds_up = True

    def __init__(
        self,
        in_chans: int,
        dim: int,
        norm_layer: str = "layer",
        norm_eps: float = 1e-5,
        mid_norm: bool = False,
        act: str | None = None,
    ) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, dim // 2, 3, stride=2, padding=1),
            nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1),
        )
        self.mid_norm = create_norm(norm_layer, dim // 2, norm_eps) if mid_norm else nn.Identity()
        self.act = nn.Identity() if act is None else get_act_layer(act)()
        self.norm = create_norm(norm_layer, dim, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds an image of any size; odd sides round up."""
        x = self.mid_norm(self.proj[0](x).permute(0, 2, 3, 1))
        x = self.proj[1](self.act(x).permute(0, 3, 1, 2))
        return self.norm(x.permute(0, 2, 3, 1))


class DeepStem(nn.Module):
    """Image `(B, C, H, W)` to a map at stride 4: three overlapping 3x3 convolutions without bias, each normed.

    The first and the last halve the map; the first two are activated.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map.

    Paper: Gramian Attention Heads are Strong yet Efficient Vision Learners, arXiv 2310.16483.
    """

    first_conv = "proj"
    stride = 4
    rounds_up = True

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(in_chans, dim, 3, stride=2, padding=1, bias=False), nn.LayerNorm(dim)
        self.conv2, self.norm2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.LayerNorm(dim)
        self.conv3, self.norm3 = nn.Conv2d(dim, dim, 3, stride=2, padding=1, bias=False), nn.LayerNorm(dim)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Embeds an image of any size; odd sides round up."""
        x = self.act(self.norm(self.proj(x).permute(0, 2, 3, 1)))
        x = self.act(self.norm2(self.conv2(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return self.norm3(self.conv3(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class OverlapStem(nn.Module):
    """Image `(B, C, H, W)` to a map at stride 4 by one 7x7 convolution, then a norm.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map.
        padding: Zeros on each side of the image; 3 centres the convolution on the first pixel of each four.
        norm_layer: Name of the norm, one of `visionattn.layers.NORMS`.
        norm_eps: Added to the variance by the norm.

    Paper: PVT v2, arXiv 2106.13797.
    """

    first_conv = "proj"
    stride = 4
    rounds_up = True

    def __init__(
        self, in_chans: int, dim: int, padding: int = 3, norm_layer: str = "layer", norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, 7, stride=4, padding=padding)
        self.norm = create_norm(norm_layer, dim, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds an image of any size; sides that are no multiples of 4 are zero-padded."""
        return self.norm(self.proj(pad_to_multiple(x, 4, channels_last=False)).permute(0, 2, 3, 1))


class PatchStem(nn.Module):
    """Image `(B, C, H, W)` to a map of patches, which do not overlap unless `stride` says so.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map.
        patch_size: Side of a patch.
        norm: Whether a norm follows.
        drop_ragged: What becomes of the last rows and columns where they fill no patch: they are dropped, or
            filled up with zeros. An image smaller than a patch is filled up in any case.
        norm_layer: Name of the norm, one of `visionattn.layers.NORMS`.
        norm_eps: Added to the variance by the norm.
        stride: Pixels from patch to patch, the stride of the map; None for `patch_size`.
        bias: Whether the convolution has a bias.

    Raises:
        ValueError: If `patch_size` is not positive, or `stride` is not from 1 to `patch_size`.
    """

    first_conv = "proj"

    def __init__(
        self,
        in_chans: int,
        dim: int,
        patch_size: int = 4,
        norm: bool = True,
        drop_ragged: bool = False,
        norm_layer: str = "layer",
        norm_eps: float = 1e-5,
        stride: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size={patch_size} must be at least 1")
        if stride is not None and not 1 <= stride <= patch_size:
            raise ValueError(f"stride={stride} must be from 1 to patch_size={patch_size}")
        self.stride = patch_size if stride is None else stride
        self.overlap = patch_size - self.stride
        self.rounds_up = not drop_ragged
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=self.stride, bias=bias)
        self.norm = create_norm(norm_layer, dim, norm_eps) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Embeds an image of any size."""
        if self.overlap or not self.rounds_up:
            x = pad_to_patch(x, self.overlap + self.stride, channels_last=False)
        if self.rounds_up:
            x = pad_map(x, *((self.overlap - side) % self.stride for side in x.shape[2:]), channels_last=False)
        return self.norm(self.proj(x).permute(0, 2, 3, 1))

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map of an image."""
        spare = self.stride - 1 if self.rounds_up else 0
        rows, columns = ((side - self.overlap + spare) // self.stride for side in (height, width))
        return (rows, columns) if is_symbolic(height, width) else (max(rows, 1), max(columns, 1))


class ConvPatchStem(nn.Module):
    """Image `(B, C, H, W)` to a map of patches by three convolutions at half the resolution and one of patches.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the map.
        patch_size: Pixels from patch to patch, even.
        hidden: Channels of the first convolutions.

    Raises:
        ValueError: If `patch_size` is not even and positive.

    Paper: All Tokens Matter: Token Labeling for Training Better Vision Transformers, arXiv 2104.10858.
    """

    first_conv = "conv1"
    rounds_up = True

    def __init__(self, in_chans: int, dim: int, patch_size: int = 16, hidden: int = 64) -> None:
        super().__init__()
        if patch_size < 2 or patch_size % 2:
            raise ValueError(f"patch_size={patch_size} must be even and positive")
        self.stride = patch_size
        self.conv1 = nn.Conv2d(in_chans, hidden, 7, stride=2, padding=3, bias=False)
        self.conv2, self.conv3 = (nn.Conv2d(hidden, hidden, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2, self.bn3 = (BatchNorm(hidden) for _ in range(3))
        self.act = nn.ReLU()
        self.proj = nn.Conv2d(hidden, dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds an image of any size; sides that are no multiples of `patch_size` are zero-padded."""
        x = pad_to_multiple(x, self.stride, channels_last=False)
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.act(norm(conv(x)))
        return self.proj(x).permute(0, 2, 3, 1)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the map of an image."""
        return ceil_div(height, self.stride), ceil_div(width, self.stride)


class ConvDownsample(nn.Module):
    """Halves a map and changes its channels by an overlapping 3x3 convolution and a norm.

    Args:
        dim: Channels in.
        out_dim: Channels out.
        bias: Whether the convolution has a bias.
        norm_layer: Name of the norm, one of `visionattn.layers.NORMS`.
        norm_eps: Added to the variance by the norm.
        norm_first: Whether the norm comes before the convolution, not after it.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        bias: bool = False,
        norm_layer: str = "layer",
        norm_eps: float = 1e-5,
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=bias)
        self.norm = create_norm(norm_layer, dim if norm_first else out_dim, norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides round up."""
        x = self.norm(x) if self.norm_first else x
        x = self.reduction(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if self.norm_first else self.norm(x)


class PatchDownsample(nn.Module):
    """Halves a map and changes its channels by a convolution of 2x2 patches and a norm.

    An odd last row or column is dropped, unless there is no other.

    Args:
        dim: Channels in.
        out_dim: Channels out.
        norm_layer: Name of the norm, one of `visionattn.layers.NORMS`.
        norm_first: Whether the norm comes before the convolution, not after it.
        bias: Whether the convolution has a bias.
        norm_eps: Added to the variance by the norm.
        norm: Whether there is a norm.

    Paper: Pyramid Vision Transformer, arXiv 2102.12122.
    """

    rounds_up = False

    def __init__(
        self,
        dim: int,
        out_dim: int,
        norm_layer: str = "layer",
        norm_first: bool = False,
        bias: bool = True,
        norm_eps: float = 1e-5,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.proj = nn.Conv2d(dim, out_dim, 2, stride=2, bias=bias)
        self.norm = create_norm(norm_layer, dim if norm_first else out_dim, norm_eps) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides round down, 1 stays 1."""
        x = pad_to_patch(self.norm(x) if self.norm_first else x, 2)
        x = self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x if self.norm_first else self.norm(x)


class PositionedDownsample(PatchDownsample):
    """`PatchDownsample` that ends in a position table, resized bilinearly on a map of another size.

    Args:
        dim: Channels in.
        out_dim: Channels out.
        map_size: `(height, width)` of the halved map that the table is made for; None for no table.

    Paper: Pyramid Vision Transformer, arXiv 2102.12122.
    """

    def __init__(self, dim: int, out_dim: int, map_size: tuple[int, int] | None) -> None:
        super().__init__(dim, out_dim)
        self.position = bilinear_position(out_dim, map_size)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides round down, 1 stays 1."""
        return self.position(super().forward(x))


class PositionedMerging(DeformableMerging):
    """`DeformableMerging` that ends in a position table, resized bilinearly on a map of another size.

    Args:
        dim: Channels in.
        out_dim: Channels out.
        map_size: `(height, width)` of the halved map that the table is made for; None for no table.

    Paper: Less is More: Pay Less Attention in Vision Transformers, arXiv 2105.14217.
    """

    def __init__(self, dim: int, out_dim: int, map_size: tuple[int, int] | None) -> None:
        super().__init__(dim, out_dim)
        self.position = bilinear_position(out_dim, map_size)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides round down, 1 stays 1."""
        return self.position(super().forward(x))


def bilinear_position(dim: int, map_size: tuple[int, int] | None) -> nn.Module:
    """Position table of a map of `map_size`, or nothing."""
    return nn.Identity() if map_size is None else PositionEmbedding(dim, map_size, "bilinear")


class PatchMerging(nn.Module):
    """Halves a map by joining 2x2 pixels: LayerNorm of the joined channels, then a linear map without bias.

    Args:
        dim: Channels in.
        out_dim: Channels out.

    Paper: Swin Transformer, arXiv 2103.14030.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides are zero-padded first."""
        return self.reduction(self.norm(self.join(x)))

    @staticmethod
    def join(x: Tensor) -> Tensor:
        """Channels of 2x2 pixels side by side, `(B, ceil(H / 2), ceil(W / 2), 4C)`."""
        x = pad_to_multiple(x, 2)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # The parity of the row varies fastest among the four neighbours.
        return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


class PostNormMerging(PatchMerging):
    """`PatchMerging` with the norm after the linear map.

    Args:
        dim: Channels in.
        out_dim: Channels out.

    Paper: Swin Transformer V2, arXiv 2111.09883.
    """

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__(dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Halves `(B, H, W, C)`; odd sides are zero-padded first."""
        return self.norm(self.reduction(self.join(x)))


class PositionEmbedding(nn.Module):
    """Adds a learned vector per position; on a map of another size the table is resized.

    Args:
        dim: Channels of the map.
        map_size: `(height, width)` that the table is made for.
        mode: How it is resized, "bicubic" or "bilinear".
    """

    def __init__(self, dim: int, map_size: tuple[int, int], mode: str = "bicubic") -> None:
        super().__init__()
        self.map_size, self.mode = map_size, mode
        self.table = nn.Parameter(torch.empty(dim, *map_size))
        init_table(self.table)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays."""
        return {"table"}

    def forward(self, x: Tensor) -> Tensor:
        """Adds to `(B, H, W, C)`."""
        size = (x.shape[1], x.shape[2])
        fits = not is_symbolic(*size) and size == self.map_size
        table = self.table if fits else resize_table(self.table, size, self.mode)
        return x + table.permute(1, 2, 0)


class ClassTokenEmbedding(nn.Module):
    """Turns a map into tokens behind a class token, and adds a learned vector to each.

    On a map of another size the vectors of the map's positions are resized.

    Args:
        dim: Channels of the map.
        map_size: `(height, width)` that the table is made for.
        mode: How it is resized, "bicubic" or "bilinear".
        class_token: Whether there is a class token; without it the map stays a map, and the table's first vector is
            not used.

    Paper: Training data-efficient image transformers & distillation through attention, arXiv 2012.12877.
    """

    def __init__(self, dim: int, map_size: tuple[int, int], mode: str = "bicubic", class_token: bool = True) -> None:
        super().__init__()
        self.map_size, self.mode = map_size, mode
        self.class_token = nn.Parameter(torch.empty(dim)) if class_token else None
        self.table = nn.Parameter(torch.empty(1 + map_size[0] * map_size[1], dim))  # the class token's vector first
        for tensor in self.parameters():
            init_table(tensor)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays."""
        return {name for name, _ in self.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B, 1 + H * W, C)` of a map `(B, H, W, C)`; the map, if there is no class token."""
        size = (x.shape[1], x.shape[2])
        table = self.table[1:]
        if is_symbolic(*size) or size != self.map_size:
            planes = resize_table(table.t().unflatten(1, self.map_size), size, self.mode)
            table = planes.flatten(1).t()
        tokens = x.flatten(1, 2) + table
        if self.class_token is None:
            return tokens.unflatten(1, size)
        first = self.class_token + self.table[0]
        return torch.cat([first.expand(x.shape[0], 1, -1), tokens], 1)


class MiddleTokenEmbedding(nn.Module):
    """`ClassTokenEmbedding` whose class token stands amid the others, before the one that H * W / 2 precede.

    Args:
        dim: Channels of the map.
        map_size: `(height, width)` that the position table is made for.

    Paper: Vision Mamba, arXiv 2401.09417.
    """

    def __init__(self, dim: int, map_size: tuple[int, int]) -> None:
        super().__init__()
        self.tokens = ClassTokenEmbedding(dim, map_size)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B, 1 + H * W, C)` of a map `(B, H, W, C)`."""
        tokens = self.tokens(x)
        middle, place = self._places(tokens)
        earlier = torch.where(place < middle, place + 1, place)
        return tokens.index_select(1, torch.where(place == middle, 0, earlier))

    def class_first(self, tokens: Tensor) -> Tensor:
        """Tokens in the usual order."""
        middle, place = self._places(tokens)
        later = torch.where(place <= middle, place - 1, place)
        return tokens.index_select(1, torch.where(place == 0, middle, later))

    @staticmethod
    def _places(tokens: Tensor) -> tuple[int, Tensor]:
        # Places are looked up, not sliced: a slice would tie a trace to how its example lay in memory.
        return (tokens.shape[1] - 1) // 2, torch.arange(tokens.shape[1], device=tokens.device)


class ConditionalPosition(nn.Module):
    """Adds a depth-wise 3x3 convolution of the map, which knows positions by the zeros around it.

    Args:
        dim: Channels of the map.

    Paper: Conditional Positional Encodings for Vision Transformers, arXiv 2102.10882.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays."""
        return {"conv.weight"}

    def forward(self, x: Tensor) -> Tensor:
        """Adds to `(B, H, W, C)`."""
        return x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


STEMS: dict[str, type[nn.Module]] = {"conv": ConvStem, "deep": DeepStem, "overlap": OverlapStem, "patch": PatchStem}
DOWNSAMPLERS: dict[str, type[nn.Module]] = {
    "conv": ConvDownsample,
    "patch": PatchDownsample,
    "patch_position": PositionedDownsample,
    "merge": PatchMerging,
    "merge_post_norm": PostNormMerging,
    "deformable_merge": DeformableMerging,
    "deformable_position": PositionedMerging,
}
