# SPDX-License-Identifier: Apache-2.0
"""Attention through all layers: rollout and flow.

Paper: Quantifying Attention Flow in Transformers, arXiv 2005.00928.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from visionattn.explanation.weights import Grid, Weights

CAPACITY = 2**20  # units of flow for a weight of 1: the solver counts in whole numbers


def with_residual(weights: Tensor) -> Tensor:
    """Weights `(..., N, N)` made non-negative, each row summing to 1, half of it on the token itself.

    A row of zeros leaves the token to itself.
    """
    weights = weights.abs()
    sums = weights.sum(-1, keepdim=True)
    eye = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    return 0.5 * torch.where(sums > 0, weights / sums.clamp(min=torch.finfo(weights.dtype).tiny), eye) + 0.5 * eye


def attention_rollout(weights: Tensor) -> Tensor:
    """What output tokens take from input tokens through all layers, `(N, N)`, rows summing to 1.

    Args:
        weights: Attention of each layer, the first one first, `(layers, N, N)`, means over heads.

    Raises:
        ValueError: The shape is another.
    """
    _check(weights)
    total = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    for layer in with_residual(weights):
        total = layer @ total
    return total


def attention_flow(weights: Tensor, source: Tensor) -> Tensor:
    """Largest flow from the output to each input token, through a graph whose edges have the weights as capacities.

    Args:
        weights: Attention of each layer, the first one first, `(layers, N, N)`, means over heads; residual connections
            are put in.
        source: What the output takes of each token of the last layer, `(N,)`: the capacities of its edges.

    Returns:
        Flows `(N,)`, each by itself the largest; they don't sum to 1.

    Raises:
        ValueError: A shape is another, or `source` is negative.
        ModuleNotFoundError: SciPy is not installed.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import maximum_flow

    _check(weights)
    layers, count, _ = weights.shape
    if source.shape != (count,) or bool((source < 0).any()):
        raise ValueError(f"source of shape {tuple(source.shape)} must be ({count},) and not negative")
    # Nodes: the tokens before the first layer, those after it, ..., those after the last, the output.
    capacities = (CAPACITY * with_residual(weights.double())).round().to(torch.int32).cpu().numpy()
    output = (layers + 1) * count
    after, before = np.divmod(np.arange(count * count), count)
    starts = [np.full(count, output)] + [(i + 1) * count + after for i in range(layers)]
    ends = [layers * count + np.arange(count)] + [i * count + before for i in range(layers)]
    sizes = [(CAPACITY * source.double()).round().to(torch.int32).cpu().numpy(), *(c.ravel() for c in capacities)]
    places = np.concatenate(starts), np.concatenate(ends)
    graph = coo_matrix((np.concatenate(sizes), places), shape=(output + 1, output + 1)).tocsr()
    flows = [maximum_flow(graph, output, token).flow_value / CAPACITY for token in range(count)]
    return torch.tensor(flows, dtype=weights.dtype)


def roll_back(weights: Weights, mixture: Tensor) -> Tensor:
    """One step of rollout, from a mixture of a layer's output tokens `(M,)` to one of its input tokens `(N,)`."""
    rows = weights.rows(mixture).mean(0).abs()
    kept = resize(mixture, weights.output_grid, weights.grid)
    share = rows * (mixture.sum() / rows.sum()) if bool(rows.sum() > 0) else kept
    return 0.5 * share + 0.5 * kept


def cells(weights: Weights, side: int, prefix: int) -> Tensor:
    """A layer's weights `(K, K)` between its first `prefix` tokens and `side` x `side` cells of its map.

    A cell's row is the mean of its tokens'; what it takes from a cell is the sum over that one's tokens.
    """
    before = membership(weights.grid, side, prefix).to(weights.site.output)
    after = membership(weights.output_grid, side, prefix).to(weights.site.output)
    return torch.stack([weights.rows(row).mean(0) @ before.T for row in after / after.sum(1, keepdim=True)])


def membership(grid: Grid, side: int, prefix: int) -> Tensor:
    """Which tokens `(K, N)` belong to each of `prefix` leading tokens and `side` x `side` cells: 1 or 0."""
    row, column = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    cell = (row * side // grid.height * side + column * side // grid.width).flatten()
    places = torch.cat([torch.full((grid.prefix - prefix,), -1), cell + prefix])
    places = torch.cat([torch.arange(prefix), places])
    return (places == torch.arange(prefix + side * side)[:, None]).float()


def resize(mixture: Tensor, before: Grid, after: Grid) -> Tensor:
    """A mixture of tokens on another layer's map, with the same sum."""
    if before == after:
        return mixture
    prefix = min(before.prefix, after.prefix)
    pixels = mixture[before.prefix :].view(1, 1, before.height, before.width)
    size = after.height, after.width
    spread = F.interpolate(pixels, size, mode="area" if size[0] < before.height else "nearest").flatten()
    lost = mixture.sum() - mixture[:prefix].sum()
    spread = (
        spread * (lost / spread.sum()) if bool(spread.sum() > 0) else torch.full_like(spread, float(lost) / len(spread))
    )
    return torch.cat([mixture[:prefix], mixture.new_zeros(after.prefix - prefix), spread])


def _check(weights: Tensor) -> None:
    if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or not len(weights):
        raise ValueError(f"weights of shape {tuple(weights.shape)} must be (layers, N, N), with at least one layer")
