# SPDX-License-Identifier: Apache-2.0
"""Attention whose pairs of queries and keys a small network predicts, by the image."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from torch import Tensor, nn

from visionattn.kernels import indexed_attention
from visionattn.kernels.pattern import is_symbolic

from .attention import resize_table
from .init import init_table
from .linear_mixer import LinearMixer

# Logits of a call from which no more than a part of them exists at a time: 16 MiB of float32 for each of a few tensors.
CHUNK = 1 << 22
# Tokens over keys from which gathering keys is faster than a mask over all of them; see docs/kernels.md.
GATHERED = 128


class Connectivity(NamedTuple):
    """A prediction: the score of a pair is the product of a query's coefficients and a key's column of the basis."""

    coefficients: Tensor  # (B, heads, queries, r)
    basis: Tensor  # (r, keys)

    @property
    def scores(self) -> Tensor:
        """Predicted attention `(B, heads, queries, keys)`."""
        return self.coefficients @ self.basis


class ConnectivityPredictor(nn.Module):
    """Predicts an attention matrix of low rank: coefficients of each query over learned rows, both of them sparse.

    Args:
        head_dim: Channels of a head.
        num_heads: Attention heads, which share the predictor.
        map_size: `(height, width)` of the map that the tables are made for; on another map they are resized.
        class_token: Whether a class token leads the keys. It asks for no prediction itself.
        reduce_tokens: Tokens over the rank of the prediction.
        reduce_channels: `head_dim` over the channels that the predictor compares.
        basis_threshold: Entries of the learned rows up to this size become zero.
        top_coefficients: Coefficients that a query keeps; None keeps those above `coefficient_threshold`.
        coefficient_threshold: See `top_coefficients`.

    Raises:
        ValueError: If a size is not positive or a threshold is negative.

    Paper: Sparsifiner: Learning Sparse Instance-Dependent Attention, arXiv 2303.13755.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        map_size: tuple[int, int],
        class_token: bool,
        reduce_tokens: int = 6,
        reduce_channels: int = 2,
        basis_threshold: float = 0.02,
        top_coefficients: int | None = 8,
        coefficient_threshold: float = 0.05,
    ) -> None:
        super().__init__()
        named = {"reduce_tokens": reduce_tokens, "reduce_channels": reduce_channels, "map_size": min(map_size),
                 "top_coefficients": 1 if top_coefficients is None else top_coefficients}  # fmt: skip
        for name, value in named.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if basis_threshold < 0 or coefficient_threshold < 0:
            raise ValueError(
                f"basis_threshold={basis_threshold}, coefficient_threshold={coefficient_threshold} must not be negative"
            )
        self.map_size, self.class_token = map_size, class_token
        self.scale = num_heads**-0.5  # of the number of heads, as the reference has it
        self.basis_threshold = basis_threshold
        self.top_coefficients, self.coefficient_threshold = top_coefficients, coefficient_threshold
        tokens = map_size[0] * map_size[1] + int(class_token)
        rank, channels = max(tokens // reduce_tokens, 1), max(head_dim // reduce_channels, 1)
        self.q, self.k = nn.Linear(head_dim, channels), nn.Linear(head_dim, channels)
        self.down, self.up = (nn.Parameter(torch.empty(tokens, rank)) for _ in range(2))
        for table in (self.down, self.up):
            init_table(table)

    def forward(self, q: Tensor, k: Tensor, size: tuple[int, int], kept: Tensor | None = None) -> Connectivity:
        """Prediction for queries and keys `(B, heads, N, D)` of a map of `size`, the class token first if there is one.

        `kept` `(B, N)` says which tokens were not pruned; None for all.
        """
        q, k = self.q(q), self.k(k)
        if kept is not None:
            q, k = (x * kept[:, None, :, None] for x in (q, k))
        down = self._table(self.down, size)
        # Sums over more tokens than the table was made for would be larger.
        down = down * (self.down.shape[0] / down.shape[0])
        coefficients = (q @ (k.transpose(-2, -1) @ down) * self.scale).softmax(-1)
        if self.class_token:
            coefficients = coefficients[:, :, 1:]
        basis = self._table(self.up, size).t().abs()
        return Connectivity(self._sparse(coefficients), basis * (basis > self.basis_threshold))

    def _sparse(self, x: Tensor) -> Tensor:
        if self.top_coefficients is None:
            return x * (x > self.coefficient_threshold)
        best = x.topk(min(self.top_coefficients, x.shape[-1]), -1)
        return torch.zeros_like(x).scatter(-1, best.indices, best.values)

    def _table(self, table: Tensor, size: tuple[int, int]) -> Tensor:
        if not is_symbolic(*size) and size == self.map_size:
            return table
        first = int(self.class_token)
        planes = resize_table(table[first:].t().unflatten(1, self.map_size), size)
        return torch.cat([table[:first], planes.flatten(1).t()])


class SparsifiedAttention(LinearMixer):
    """Every token attends to the keys that a predictor finds worth it for this image; a class token attends to all.

    The choice has no gradient: the predictor is trained by comparing `predictor(...).scores` with dense attention.
    Without gradients, many tokens are answered in parts, and if they see few keys these are gathered: memory does not
    grow with the square of the tokens.

    Args:
        dim: Channels of the tokens; a multiple of `num_heads`.
        num_heads: Attention heads.
        map_size: Side or `(height, width)` of the map that the predictor's tables are made for.
        keep_rate: Share of the keys that a query attends to, those of the highest predicted scores.
        score_threshold: Attend to the keys of scores above this instead; None for `keep_rate`.
        reduce_tokens: As for `ConnectivityPredictor`, and so are the four arguments that follow.
        reduce_channels: `head_dim` over the channels that the predictor compares.
        basis_threshold: Entries of the learned rows up to this size become zero.
        top_coefficients: Coefficients that a query keeps; None keeps those above `coefficient_threshold`.
        coefficient_threshold: See `top_coefficients`.
        qkv_bias: Whether the qkv projection has a bias.
        qk_scale: Factor on the logits; None means `head_dim ** -0.5`.
        proj_drop: Dropout after the output projection.
        class_token: Whether the mixer takes tokens `(B, 1 + H * W, C)` and the size of the map instead of a map.

    Raises:
        ValueError: If `num_heads` does not divide `dim`, `keep_rate` is not in (0, 1], `score_threshold` is not
            positive, or as `ConnectivityPredictor` says.

    Paper: Sparsifiner: Learning Sparse Instance-Dependent Attention, arXiv 2303.13755.
    """

    cost = "O(N²)"

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: int | tuple[int, int] = 14,
        keep_rate: float = 0.25,
        score_threshold: float | None = None,
        reduce_tokens: int = 6,
        reduce_channels: int = 2,
        basis_threshold: float = 0.02,
        top_coefficients: int | None = 8,
        coefficient_threshold: float = 0.05,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
        class_token: bool = False,
    ) -> None:
        super().__init__(dim, num_heads, None, qkv_bias, qk_scale, proj_drop, class_token)
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate={keep_rate} must be above 0 and at most 1")
        if score_threshold is not None and score_threshold <= 0:
            raise ValueError(f"score_threshold={score_threshold} must be positive, or None")
        self.keep_rate, self.score_threshold = keep_rate, score_threshold
        self.predictor = ConnectivityPredictor(
            dim // num_heads, num_heads, to_2tuple(map_size), class_token, reduce_tokens, reduce_channels,
            basis_threshold, top_coefficients, coefficient_threshold,
        )  # fmt: skip

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Mixes tokens `(B, 1 + H * W, C)` of a map of `size`, or a map `(B, H, W, C)`, any H, W >= 1."""
        return self.attend(x, size)[0]

    def attend(
        self, x: Tensor, size: tuple[int, int] | None = None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `forward` returns; and the attention of the first token to all, `(B, N)`, averaged over the heads.

        Args:
            x: Tokens or a map.
            size: `(height, width)` of the tokens' map.
            kept: Which tokens were not pruned `(B, N)`, the class token among them, as many in every image; None for
                all. Keys and values of the others are zero, and only the class token still sees them.
        """
        size = (x.shape[1], x.shape[2]) if size is None else size
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in self.project_in(x))
        if kept is not None:
            q, k, v = (t * kept[:, None, :, None] for t in (q, k, v))
        traced = torch.is_grad_enabled() or torch.compiler.is_compiling() or x.is_meta
        with torch.no_grad():
            found = self.predictor(q, k, size, kept)
        if traced or kept is not None or k.shape[2] ** 2 * q.shape[0] * self.num_heads <= CHUNK:
            queries = q[:, :, int(self.class_token) :]
            rows = self._masked(queries, k, v, self.mask(found.scores, kept))
        else:
            rows = self._in_parts(q, k, v, found)
        first = ((q[:, :, :1] @ k.transpose(-2, -1)) * self.scale).softmax(-1)
        if self.class_token:
            rows = torch.cat([(first @ v).to(rows.dtype), rows], 2)
        out = self.project_out(rows.transpose(1, 2).unflatten(1, x.shape[1:-1]))
        return self._anchored(out), first.mean(1)[:, 0]

    def budget(self, tokens: int) -> int:
        """Keys that a query attends to among `tokens`."""
        return math.ceil(self.keep_rate * tokens)

    def mask(self, scores: Tensor, kept: Tensor | None = None) -> Tensor:
        """Which keys a query attends to, of scores `(B, heads, queries, keys)`; among equal scores any.

        `kept` is as for `attend`; no query attends to more keys than there are kept tokens besides the class token.
        """
        if kept is not None:
            scores = scores.masked_fill(~kept[:, None, None], -torch.inf)
        if self.score_threshold is not None:
            return scores > self.score_threshold
        tokens = scores.shape[-1]
        if is_symbolic(tokens):  # all in order, since how many are taken is no number here
            order = scores.argsort(dim=-1, descending=True)
            share = torch.full((), tokens, dtype=torch.float64, device=scores.device) * self.keep_rate
            best = torch.arange(tokens, device=scores.device) < share.ceil()
        else:
            order = scores.topk(self.budget(tokens), -1).indices
            best = torch.ones(order.shape[-1], dtype=torch.bool, device=scores.device)
        if kept is not None:
            best = best & (torch.arange(order.shape[-1], device=scores.device) < kept[0].sum() - 1)
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, best.expand_as(order))

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        if self.score_threshold is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        seeing = mask.any(-1, keepdim=True)  # a query that sees nothing gets nothing
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~seeing, scale=self.scale) * seeing

    def _in_parts(self, q: Tensor, k: Tensor, v: Tensor, found: Connectivity) -> Tensor:
        """The same for some queries at a time, without gradients."""
        q = q[:, :, int(self.class_token) :]
        tokens = k.shape[2]
        rows = max(1, CHUNK // (q.shape[0] * self.num_heads * tokens))
        parts = []
        for part, coefficients in zip(q.split(rows, 2), found.coefficients.split(rows, 2), strict=True):
            scores = coefficients @ found.basis
            if self.score_threshold is None and self.budget(tokens) * GATHERED <= tokens:
                keys = scores.topk(self.budget(tokens), -1, sorted=False).indices
                heads_last = (t.transpose(1, 2) for t in (part, k, v, keys))
                parts.append(indexed_attention(*heads_last, scale=self.scale).transpose(1, 2))
            else:
                parts.append(self._masked(part, k, v, self.mask(scores)))
        return torch.cat(parts, 2)

    def _anchored(self, out: Tensor) -> Tensor:
        """Gives the predictor gradients of zero, since data-parallel training waits for one from every parameter."""
        if torch.is_grad_enabled():
            for parameter in self.predictor.parameters():
                out = out + 0 * parameter.sum().to(out.dtype)
        return out

    def attention_macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the predictor, of dense prediction, and of the attention products of chosen pairs."""
        patches = height * width
        tokens = patches + int(self.class_token)
        rank, channels = self.predictor.down.shape[1], self.predictor.q.out_features
        predicted = 2 * tokens * self.dim * channels + self.num_heads * tokens * rank * (2 * channels + patches)
        return predicted + 2 * (patches * self.budget(tokens) + int(self.class_token) * tokens) * self.dim
