# SPDX-License-Identifier: Apache-2.0
"""Attention weights on the pixels of a layer's map, read by autograd from what the layer computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from visionattn.explanation.capture import Call, Site

WEIGHTS, IMPLIED, JACOBIAN = "weights", "implied weights", "share of the Jacobian"
# Attention of linear cost: there are no weights but those that the result implies, which may be negative.
LINEAR = {"agent_attention", "flow_attention", "focused_linear_attention", "inline_attention", "EfficientMixer",
          "TaylorAttention"}  # fmt: skip
PROBES = 8
MOST_SHARED = 512  # keys that are traced one by one
TOLERANCE = 0.05


class NotTraced(Exception):
    """The tokens of a call are not those of the layer's map, or cannot be told apart."""


@dataclass(frozen=True)
class Grid:
    """Where a layer's tokens lie.

    Args:
        prefix: Tokens before the map's, such as a class token.
        height: Rows of the map.
        width: Columns of the map.
    """

    prefix: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.prefix + self.height * self.width


def grid_of(tensor: Tensor, image_size: tuple[int, int], channels_last: bool | None = None) -> tuple[Grid, bool] | None:
    """Grid of a map `(1, H, W, C)` or `(1, C, H, W)`, or of tokens `(1, N, C)`; and whether channels are last.

    None where it does not have the proportions of the image, `(height, width)` in pixels. `channels_last` allows one
    layout alone.
    """
    if tensor.ndim == 4:
        for last in (True, False) if channels_last is None else (channels_last,):
            height, width = tensor.shape[1:3] if last else tensor.shape[2:4]
            if _fits(height, width, image_size):
                return Grid(0, height, width), last
        return None
    if channels_last is False:
        return None
    count = tensor.shape[1]
    for prefix in range(min(9, count)):
        height = max(1, round(math.sqrt((count - prefix) * image_size[0] / image_size[1])))
        width = (count - prefix) // height
        if height * width == count - prefix and _fits(height, width, image_size):
            return Grid(prefix, height, width), True
    return None


def _fits(height: int, width: int, image_size: tuple[int, int]) -> bool:
    # A map's sides are rounded up or down: they fit within a pixel of the map.
    stride = math.sqrt(image_size[0] * image_size[1] / (height * width))
    return abs(image_size[0] / stride - height) <= 1 and abs(image_size[1] / stride - width) <= 1


def tokens_of(tensor: Tensor, channels_last: bool) -> Tensor:
    """Tokens `(N, C)` of a map or sequence of one image."""
    if tensor.ndim == 3:
        return tensor[0]
    return tensor[0].flatten(0, 1) if channels_last else tensor[0].flatten(1).T


class Weights:
    """What a layer's tokens take from which; a matrix, of which any mixture of rows can be asked for.

    Args:
        site: The layer, whose graph is still there.
        image_size: `(height, width)` of the image, in pixels.

    Raises:
        ValueError: Its map does not have the proportions of the image.
    """

    def __init__(self, site: Site, image_size: tuple[int, int]) -> None:
        self.site = site
        self.points = [call.points for call in site.calls if call.points is not None]
        layouts = [layout for layout in (True, False) if self._take(layout, image_size)]
        if not layouts:
            raise ValueError(f"{site.name}: input of shape {tuple(site.input.shape)} is no map of the image")
        self.parts: list[Callable[[Tensor], Tensor]] = []
        # A map of as many channels as rows may be either; only the right layout has one token a pixel.
        for layout in layouts:
            self._take(layout, image_size)
            try:
                self.parts = [self._part(call) for call in site.calls]
                break
            except NotTraced:
                self._take(layouts[-1], image_size)
        self.method = JACOBIAN if not self.parts else WEIGHTS
        if self.parts and any(call.op in LINEAR for call in site.calls):
            self.method = IMPLIED

    def rows(self, mixture: Tensor) -> Tensor:
        """Rows of the matrix, mixed: one factor an output token `(M,)` to weights of input tokens `(heads, N)`.

        A layer whose weights are not explicit has one head, whose weights are shares of the squared Jacobian, and
        non-negative. What a window holds beyond the map has no place in the result.
        """
        if not self.parts:
            return self._jacobian(mixture)
        return torch.cat([part(mixture) for part in self.parts])

    def _take(self, channels_last: bool, image_size: tuple[int, int]) -> bool:
        """Whether input and output are maps of this layout, which is then taken."""
        before, after = (grid_of(t, image_size, channels_last) for t in (self.site.input, self.site.output))
        if before is None or after is None:
            return False
        self.grid, self.output_grid, self.channels_last = before[0], after[0], channels_last
        return True

    @property
    def _pools(self) -> bool:
        return self.output_grid.tokens < self.grid.tokens

    def _tokens(self, tensor: Tensor) -> Tensor:
        return tokens_of(tensor, self.channels_last)

    def _part(self, call: Call) -> Callable[[Tensor], Tensor]:
        """Rows of one call."""
        places = self._output_places(call)
        # Where a pool follows, a pixel is the mean of several tokens.
        counts = torch.stack([(column == column[:, None]).sum(1) for column in places.T], 1) if self._pools else 1
        spreads = [self._spread(call, i) for i in range(len(call.values))]
        values = tuple(value.detach().requires_grad_() for value in call.values)
        with torch.enable_grad():
            first = _by_token(call.compute(*values), call.head_axis)[..., 0]

        def rows(mixture: Tensor) -> Tensor:
            wanted = torch.where(places >= 0, mixture[places.clamp(min=0)] / counts, 0)
            found = torch.autograd.grad(first, values, wanted, retain_graph=True)
            return sum(
                spread(_by_token(weights, call.head_axis)[..., 0].T)
                for spread, weights in zip(spreads, found, strict=True)
            )  # type: ignore[return-value]

        return rows

    def _output_places(self, call: Call) -> Tensor:
        """Token of the layer that each token of a call's output becomes, `(T, heads)`; -1 for none."""
        output = self._tokens(self.site.output)
        ones = _random(output.shape[1], output)
        numbers = torch.arange(1, len(output) + 1, device=output.device, dtype=output.dtype)[:, None]
        both = [
            _by_token(_gradient(output, call.output, ones * factor), call.head_axis)
            for factor in (torch.ones_like(numbers), numbers)
        ]
        return _numbers(*both, len(output))

    def _spread(self, call: Call, index: int) -> Callable[[Tensor], Tensor]:
        """From weights of values `(heads, T)` to weights of the layer's input tokens `(heads, N)`."""
        value = call.values[index]
        if call.points is not None:
            table = splat(call.points, self.grid)
            groups = len(table)
            return lambda w: torch.einsum("gkt,gtn->gkn", w.unflatten(0, (groups, -1)), table.to(w)).flatten(0, 1)
        by_token = _by_token(value, call.head_axis)
        count = len(by_token)
        ones = _random(by_token.shape[2], value).expand_as(by_token)
        numbers = torch.arange(1, count + 1, device=value.device, dtype=value.dtype)[:, None, None]
        both = [
            self._tokens(_gradient(by_token, self.site.input, ones * f)) for f in (torch.ones_like(numbers), numbers)
        ]
        try:
            places = _numbers(*both, count)
            seen = places[places >= 0]
            if len(seen) != len(seen.unique()):
                raise NotTraced
            return lambda w: torch.where(places >= 0, w[:, places.clamp(min=0)], 0)
        except NotTraced:
            if count > MOST_SHARED:
                raise
        # Keys of a pooled map: each is shared out over the tokens that it was computed from.
        shares = torch.stack([
            self._tokens(_gradient(by_token[t], self.site.input, ones[t])).abs().sum(-1) for t in range(count)
        ])  # fmt: skip
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        return lambda w: w @ shares.to(w)

    def _jacobian(self, mixture: Tensor) -> Tensor:
        """Shares of input tokens in the squared Frobenius norm of the Jacobian of the mixed output tokens.

        Estimated by random signs (Hutchinson), whose seed is fixed. The sum is that of the mixture.
        """
        output = self._tokens(self.site.output)
        generator = torch.Generator(output.device).manual_seed(0)
        total = output.new_zeros(self.grid.tokens)
        for _ in range(PROBES):
            signs = torch.randint(0, 2, output.shape, generator=generator, device=output.device) * 2 - 1
            probe = signs * mixture.clamp(min=0).sqrt()[:, None]
            total += self._tokens(_gradient(output, self.site.input, probe)).square().sum(-1)
        return (total / total.sum().clamp(min=torch.finfo(total.dtype).tiny) * mixture.sum())[None]


def splat(points: Tensor, grid: Grid) -> Tensor:
    """Bilinear shares `(groups, T, N)` of a grid's tokens in points `(groups, T, 2)`, (y, x) from -1 to 1."""
    y, x = (0.5 * (points + 1) * points.new_tensor([grid.height - 1, grid.width - 1])).unbind(-1)
    shares = points.new_zeros(*points.shape[:2], grid.tokens)
    for row in (y.floor(), y.floor() + 1):
        for column in (x.floor(), x.floor() + 1):
            share = (1 - (y - row).abs()) * (1 - (x - column).abs())
            inside = (row >= 0) & (row < grid.height) & (column >= 0) & (column < grid.width)
            place = (grid.prefix + row * grid.width + column).long().clamp(0, grid.tokens - 1)
            shares.scatter_add_(2, place[..., None], torch.where(inside, share, 0)[..., None])
    return shares


def _by_token(tensor: Tensor, head_axis: int | None) -> Tensor:
    """`(T, heads, D)` of a tensor whose tokens are all axes but heads and channels."""
    if head_axis is None:
        return tensor.unsqueeze(-2).flatten(0, -3)
    return tensor.movedim(head_axis, -2).flatten(0, -3)


def _gradient(output: Tensor, source: Tensor, weight: Tensor) -> Tensor:
    found = torch.autograd.grad(
        output, source, weight.to(output).expand_as(output), retain_graph=True, allow_unused=True
    )[0]
    if found is None:
        raise NotTraced
    return found


def _random(count: int, like: Tensor) -> Tensor:
    """Factors of channels, none of them small, so that no gradient vanishes by chance."""
    generator = torch.Generator().manual_seed(0)
    return (0.5 + torch.rand(count, generator=generator)).to(like)


def _numbers(plain: Tensor, numbered: Tensor, count: int) -> Tensor:
    """What number, from 0, the gradients on the last axis were multiplied by; -1 where there is no gradient.

    Raises:
        NotTraced: A gradient is a sum of several numbers'.
    """
    size = plain.square().sum(-1)
    nothing = size <= 1e-12 * size.max()
    ratio = (plain * numbered).sum(-1) / size.clamp(min=torch.finfo(size.dtype).tiny)
    wrong = (numbered - ratio[..., None] * plain).square().sum(-1).sqrt() > TOLERANCE * size.sqrt()
    far = (ratio - ratio.round()).abs() > TOLERANCE
    if ((wrong | far) & ~nothing).any() or bool(nothing.all()):
        raise NotTraced
    return torch.where(nothing, -1, ratio.round().long().clamp(1, count) - 1)
