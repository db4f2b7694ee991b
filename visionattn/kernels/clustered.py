# SPDX-License-Identifier: Apache-2.0
"""Clustered attention: tokens whose queries are alike attend to each other, wherever in the image they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.kernels import dispatch, local  # noqa: F401  local registers the backends
from visionattn.kernels.pattern import is_symbolic

# Steps of the soft two-means that finds where to split a list of tokens, and the factor on its similarities.
STEPS, SHARPNESS = 2, 100.0


def clustered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_splits: int,
    *,
    overlap: int = 20,
    scale: float | None = None,
    pair_images: bool = False,
) -> Tensor:
    """Softmax attention inside clusters of equal size, which queries are sorted into by what they look for.

    The tokens of every head are split in halves `num_splits` times, each time along the line between two centres that
    a soft two-means on the sphere finds among the queries. No gradient passes through the choice. Clusters come in
    pairs, the halves of one split; each also sees the `overlap` keys of the other that are next to it in the order.
    Where the clusters do not divide the tokens, the last ones have fewer. Paper: BOAT, arXiv 2201.13027.

    Args:
        q: Queries (B, N, heads, head_dim).
        k: Keys (B, N, heads, head_dim).
        v: Values (B, N, heads, v_dim).
        num_splits: There are ``2 ** num_splits`` clusters.
        overlap: Keys of the other half that a cluster sees, as far as there are so many.
        scale: Factor of <q, k>; None means ``head_dim ** -0.5``.
        pair_images: Without a split, make a pair of the clusters of each two images that follow each other in the
            batch. Results depend on the other image then.

    Returns:
        Output (B, N, heads, v_dim).

    Raises:
        ValueError: Shapes don't fit together, a number is negative, or images to pair are odd in number.
        TypeError: q, k and v differ in dtype.
        RuntimeError: The backend asked for can't run the call.
    """
    if not (q.dtype == k.dtype == v.dtype) or not q.is_floating_point():
        raise TypeError(f"q, k and v are {q.dtype}, {k.dtype} and {v.dtype}; they must share one floating-point dtype")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; it must have 4 axes, the tokens on the second")
    if k.shape != q.shape or v.shape[:3] != q.shape[:3]:
        raise ValueError(f"k has shape {tuple(k.shape)}, v {tuple(v.shape)}; they must fit q, {tuple(q.shape)}")
    if num_splits < 0 or overlap < 0:
        raise ValueError(f"num_splits={num_splits} and overlap={overlap} must not be negative")
    pairs = pair_images and num_splits == 0
    if pairs and q.shape[0] % 2:
        raise ValueError(f"pair_images=True needs an even number of images; q has {q.shape[0]}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    problem = dispatch.Problem("clustered_attention", q.device.type, q.dtype, q.shape[-1], v.shape[-1], 1)
    return dispatch.run(problem, q, k, v, num_splits, overlap, scale, pairs)


def clustered_attention_torch(
    q: Tensor, k: Tensor, v: Tensor, num_splits: int, overlap: int, scale: float, pair_images: bool
) -> Tensor:
    """Output (B, N, heads, V); see `clustered_attention`."""
    batch, tokens, heads, _ = q.shape
    clusters = 2**num_splits
    missing = -tokens % clusters
    is_ragged = is_symbolic(tokens) or missing > 0
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q, k, v))
    if is_ragged:
        q, k, v = (F.pad(t, (0, 0, 0, missing)) for t in (q, k, v))
    order = balanced_order(q, num_splits, tokens)
    size = order.shape[2] // clusters
    shape = (batch // 2, heads, 2, size) if pair_images else (batch, heads, clusters, size)

    def sort(x: Tensor) -> Tensor:
        found = x.gather(2, order[..., None].expand(-1, -1, -1, x.shape[-1]))
        if pair_images:
            found = found.unflatten(0, (-1, 2)).transpose(1, 2)
        return found.reshape(*shape, x.shape[-1])

    q, k, v = (sort(t) for t in (q, k, v))
    mask = None
    if is_ragged:  # sorting leaves what was filled up at the very end
        real = (torch.arange(size * clusters, device=q.device) < tokens).reshape(1, 1, clusters, size, 1)
        seen = with_overlap(real, overlap).transpose(3, 4).expand(1, heads, -1, -1, -1).flatten(1, 2)
        # Not infinite: a cluster of nothing else would have no weights.
        mask = q.new_zeros(()).expand_as(seen).masked_fill(~seen, torch.finfo(q.dtype).min / 2)
    k, v = with_overlap(k, overlap), with_overlap(v, overlap)
    q, k, v = (t.flatten(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).reshape(*shape, -1)
    if pair_images:
        out = out.transpose(1, 2)
    out = out.reshape(batch, heads, -1, v.shape[-1])
    out = torch.zeros_like(out).scatter(2, order[..., None].expand_as(out), out).transpose(1, 2)
    return out.index_select(1, torch.arange(tokens, device=q.device)) if is_ragged else out


def with_overlap(x: Tensor, overlap: int) -> Tensor:
    """Tokens of clusters (B, heads, clusters, size, D), and of the neighbour in its pair the `overlap` next ones."""
    if x.shape[2] == 1 or overlap == 0:
        return x
    size = x.shape[3]
    count = torch.sym_min(overlap, size)
    # Positions are looked up, not sliced: a slice would tie a trace to how its example lay in memory.
    at = torch.arange(count, device=x.device)
    first, second = x.unflatten(2, (-1, 2)).unbind(3)
    neighbours = torch.stack([second.index_select(3, at), first.index_select(3, size - count + at)], 3)
    return torch.cat([x, neighbours.flatten(2, 3)], 3)


@torch.no_grad()
def balanced_order(x: Tensor, num_splits: int, count: int) -> Tensor:
    """Order (B, heads, N) in which tokens stand after `num_splits` splits: positions of x, cluster after cluster.

    Args:
        x: Features (B, heads, N, D), N a multiple of ``2 ** num_splits``.
        num_splits: How often each list of tokens is split.
        count: Tokens that are real; the others, all zero, stay last.
    """
    batch, heads, tokens, dim = x.shape
    x = x if x.dtype == torch.float64 else x.float()
    place = torch.arange(tokens, device=x.device)
    order = place.expand(batch, heads, -1)
    is_ragged = is_symbolic(tokens) or tokens != count
    for level in range(num_splits):
        lists = 2**level
        features = x.reshape(batch, heads, lists, tokens // lists, dim)
        scores = split_scores(features)
        if is_ragged:
            scores = scores.masked_fill((place >= count).reshape(lists, -1), torch.inf)
        rank = scores.argsort(-1)
        x = features.gather(3, rank[..., None].expand_as(features)).reshape(batch, heads, tokens, dim)
        order = order.reshape(batch, heads, lists, -1).gather(3, rank).reshape(batch, heads, tokens)
    return order


def split_scores(x: Tensor) -> Tensor:
    """Scores (..., n) of features (..., n, D), n even: the smaller ones belong to one half, the larger to the other."""
    # Products of half precision would choose other neighbours.
    with torch.autocast(x.device.type, enabled=False) if not x.is_meta else torch.no_grad():
        unit = F.normalize(x, dim=-1)
        centres = F.normalize(x.reshape(*x.shape[:-2], 2, x.shape[-2] // 2, x.shape[-1]).mean(-2), dim=-1)
        for _ in range(STEPS):
            shares = (SHARPNESS * unit @ centres.transpose(-2, -1)).softmax(-1)
            centres = F.normalize(shares.transpose(-2, -1) @ x, dim=-1)
        first, second = (unit @ centres.transpose(-2, -1) + 1).unbind(-1)
    return (first / second).nan_to_num(torch.finfo(x.dtype).max)


dispatch.register_op("torch", "clustered_attention", clustered_attention_torch)
