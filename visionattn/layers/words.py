# SPDX-License-Identifier: Apache-2.0
"""Two streams of tokens: sentences on a map, and inside each of them a 4x4 grid of words.

Paper: PyramidTNT: Improved Transformer-in-Transformer Baselines with Pyramid Architecture, arXiv 2201.00978.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from visionattn.kernels.pattern import is_symbolic

from .attention import resize_table
from .batch_norm import BatchNorm
from .embed import PositionEmbedding
from .init import init_table
from .linear_mixer import LinearMixer
from .padding import pad_to_multiple, pad_to_patch
from .spatial_reduction import SpatialReductionAttention

SIDE = 4  # of the grid of words in a sentence
WORDS = SIDE**2


class AveragedAttention(SpatialReductionAttention):
    """Every pixel attends to the averages of patches of `reduction` x `reduction` pixels.

    Rows and columns that fill no patch are dropped from keys and values; a map smaller than a patch is zero-padded.
    Graphs traced with symbolic sizes need maps of at least 2x2 patches.

    Args:
        dim: Channels of the map; a multiple of `num_heads`.
        num_heads: Attention heads.
        reduction: Side of a patch; 1 attends to the pixels themselves.
        qkv_bias: Whether the q and kv projections have a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, or `reduction` is not positive.

    Paper: PyramidTNT, arXiv 2201.00978.
    """

    def __init__(self, dim: int, num_heads: int, reduction: int = 1, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, reduction, **kwargs)
        self.sr = nn.Linear(dim, dim) if reduction > 1 else nn.Identity()

    def reduce(self, x: Tensor) -> Tensor:
        """Tokens `(B, n, C)` that keys and values are made from, those of the rows of the reduced map in turn."""
        if self.reduction == 1:
            return x.flatten(1, 2)
        planes = pad_to_patch(x, self.reduction).permute(0, 3, 1, 2)
        return self.norm(self.sr(F.avg_pool2d(planes, self.reduction).flatten(2).transpose(1, 2)))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Mixes `(B, H, W, C)`, any H, W >= 1; `bias` `(heads, H, W, h, w)` of h x w keys is added to the logits."""
        q, k, v = self.project_in(x)
        q, k, v = (t.transpose(1, 2) for t in (q.flatten(1, 2), k, v))
        mask = None if bias is None else bias.flatten(3).flatten(1, 2).to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.project_out(out.transpose(1, 2).unflatten(1, x.shape[1:3]))


class WordAttention(LinearMixer):
    """Words attend to the words of their sentence; positions play no part.

    Args:
        dim: Channels of the words; a multiple of `num_heads`.
        num_heads: Attention heads.
        qkv_bias: Whether the q and kv projections have a bias.
        proj_drop: Dropout after the output projection.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = False, proj_drop: float = 0.0) -> None:
        super().__init__(dim, num_heads, 1, qkv_bias, None, proj_drop)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Mixes words `(B * H * W, 16, C)` of a map of `size`, which changes nothing."""
        q, k, v = (t.transpose(1, 2) for t in self.project_in(x))
        return self.project_out(F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2))

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the two attention products of all sentences of one map."""
        return 2 * height * width * WORDS**2 * self.dim


class WordPath(nn.Module):
    """A block of attention and MLP among the words of each sentence, which are then projected into the sentence.

    Norms are over all words of a sentence at once.

    Args:
        dim: Channels of the words.
        sentence_dim: Channels of the sentences.
        num_heads: Heads of the words' attention.
        mlp_ratio: Hidden width of the MLP over `dim`.
        qkv_bias: Whether projections to queries, keys and values have a bias.
        proj_drop: Dropout after the attention's projection and in the MLP.
        drop_path: Probability that a sentence's words skip a branch in training.
        norm_eps: Added to the variance by the norms.

    Raises:
        ValueError: If `num_heads` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        sentence_dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WORDS * dim, norm_eps) for _ in range(2))
        self.attn = WordAttention(dim, num_heads, qkv_bias, proj_drop)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.proj_norm1 = nn.LayerNorm(WORDS * dim, norm_eps)
        self.proj = nn.Linear(WORDS * dim, sentence_dim, bias=False)
        self.proj_norm2 = nn.LayerNorm(sentence_dim, norm_eps)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, sentences: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Sentences `(B, H, W, C)` and words `(B * H * W, 16, c)` to the same shapes."""
        size = (sentences.shape[1], sentences.shape[2])
        words = words + self.drop_path(self.attn(_normed(self.norm1, words), size))
        words = words + self.drop_path(self.mlp(_normed(self.norm2, words)))
        told = self.proj_norm2(self.proj(self.proj_norm1(words.flatten(1))))
        return sentences + told.reshape(sentences.shape), words


def _normed(norm: nn.Module, words: Tensor) -> Tensor:
    return norm(words.flatten(1)).unflatten(1, words.shape[1:])


class WordStem(nn.Module):
    """Image `(B, C, H, W)` to sentences at stride 8 and words at stride 2, by convolutions that overlap.

    Args:
        in_chans: Channels of the image.
        dim: Channels of the sentences.
        word_dim: Channels of the words.
    """

    stride = 8

    def __init__(self, in_chans: int, dim: int, word_dim: int) -> None:
        super().__init__()
        self.common = _convolutions(in_chans, (2 * word_dim, 2))
        self.words = _convolutions(2 * word_dim, (word_dim, 1))
        self.sentences = _convolutions(2 * word_dim, (4 * word_dim, 2), (8 * word_dim, 2), (dim, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sentences `(B, h, w, C)` and words `(B * h * w, 16, c)`; sides are zero-padded to multiples of 8."""
        x = self.common(pad_to_multiple(x, self.stride, channels_last=False))
        sentences, words = self.sentences(x).permute(0, 2, 3, 1), self.words(x).permute(0, 2, 3, 1)
        _, height, width, _ = sentences.shape
        words = words.unflatten(2, (width, SIDE)).unflatten(1, (height, SIDE)).permute(0, 1, 3, 2, 4, 5)
        return sentences, words.reshape(-1, WORDS, words.shape[-1])


def _convolutions(dim: int, *layers: tuple[int, int]) -> nn.Sequential:
    """3x3 convolutions of (channels, stride), each with batch norm and ReLU."""
    parts: list[nn.Module] = []
    for out_dim, stride in layers:
        parts += [nn.Conv2d(dim, out_dim, 3, stride, 1), BatchNorm(out_dim), nn.ReLU()]
        dim = out_dim
    return nn.Sequential(*parts)


class WordPositions(PositionEmbedding):
    """Adds a vector to each sentence, which is resized for other maps, and the same 16 vectors to its words.

    Args:
        dim: Channels of the sentences.
        word_dim: Channels of the words.
        map_size: `(height, width)` that the table of sentences is made for.
        drop: Dropout of the sums.
    """

    def __init__(self, dim: int, word_dim: int, map_size: tuple[int, int], drop: float = 0.0) -> None:
        super().__init__(dim, map_size)
        self.drop = nn.Dropout(drop)
        self.words = nn.Parameter(torch.empty(WORDS, word_dim))
        init_table(self.words)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays."""
        return {"table", "words"}

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Adds to sentences `(B, H, W, C)` and words `(B * H * W, 16, c)`."""
        return self.drop(super().forward(x[0])), self.drop(x[1] + self.words)


class WordMerging(nn.Module):
    """Halves the map of sentences; four sentences' words, side by side, become one's by a convolution.

    Args:
        sentences: Downsampler of the sentences, whose odd sides round up.
        dim: Channels of the words.
        out_dim: Channels of the merged words.
        norm_eps: Added to the variance by the norm.
    """

    def __init__(self, sentences: nn.Module, dim: int, out_dim: int, norm_eps: float = 1e-5) -> None:
        super().__init__()
        self.sentences = sentences
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.words = nn.Conv2d(dim, out_dim, 3, 2, 1)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Sentences `(B, H, W, C)` and words `(B * H * W, 16, c)`; odd sides are filled with words of zeros."""
        sentences, words = x
        cells = self.norm(words).reshape(*sentences.shape[:3], -1)
        cells = pad_to_multiple(cells, 2)
        batch, height, width, _ = cells.shape
        cells = cells.reshape(batch, height // 2, 2, width // 2, 2, SIDE, SIDE, words.shape[2])
        planes = cells.permute(0, 1, 3, 7, 2, 5, 4, 6).reshape(-1, words.shape[2], 2 * SIDE, 2 * SIDE)
        return self.sentences(sentences), self.words(planes).flatten(2).transpose(1, 2)


class PairBias(nn.Module):
    """A number for each head, query and averaged key, resized bicubically along both for other maps.

    Args:
        num_heads: Attention heads.
        map_size: `(height, width)` of the map that the table is made for.
        reduction: Side of the patches that keys average.
    """

    def __init__(self, num_heads: int, map_size: tuple[int, int], reduction: int) -> None:
        super().__init__()
        self.reduction = reduction
        self.table = nn.Parameter(torch.empty(num_heads, *map_size, *self.key_size(map_size)))
        nn.init.normal_(self.table)

    def no_weight_decay(self) -> set[str]:
        """Parameters that no recipe decays."""
        return {"table"}

    def key_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the keys of a map."""
        height, width = (side // self.reduction for side in size)
        return (height, width) if is_symbolic(*size) else (max(height, 1), max(width, 1))

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Bias `(heads, H, W, h, w)` of a map of `size` and its h x w keys."""
        if is_symbolic(*size) or self.table.shape[1:3] != size:
            return resize_pairs(self.table, size, self.key_size(size))
        return self.table


def resize_pairs(table: Tensor, size: tuple[int, int], key_size: tuple[int, int]) -> Tensor:
    """Table `(heads, h, w, key h, key w)` of pairs of positions, resized bicubically to a map and a map of keys."""
    by_key = resize_table(table, key_size).permute(0, 3, 4, 1, 2)
    return resize_table(by_key, size).permute(0, 3, 4, 1, 2)
