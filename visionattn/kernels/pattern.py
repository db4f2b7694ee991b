# SPDX-License-Identifier: Apache-2.0
"""Which keys a query sees: the one geometry behind neighborhood, window, shifted-window and halo attention.

Everything here is per axis; the neighborhood of a query is the product over the axes. The same formulas serve
concrete sizes and symbolic ones (``torch.SymInt``, under export), which is why they are written on tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

BOUNDARIES = ("shift", "pad")
Size = int | Sequence[int]


def is_symbolic(*sizes: int) -> bool:
    """Whether any size is known only to the tracer; comparing such a size would tie the trace to it."""
    return any(isinstance(size, torch.SymInt) for size in sizes)


def ceil_div(a: int, b: int) -> int:
    """Smallest integer not below ``a / b``; also right for symbolic ``a``."""
    return (a + b - 1) // b


def fold(x: Tensor, length: int) -> Tensor:
    """Wrap positions of [-length, 2 * length) around to [0, length); inductor can't bound ``%`` of a computed index."""
    x = torch.where(x < 0, x + length, x)
    return torch.where(x >= length, x - length, x).clamp(0, length - 1)


def several(count: int) -> int:
    """`count`, or 2 where a tracer knows it only as a symbol: it would tie the trace to there being one, or several."""
    return torch.sym_max(count, 2) if is_symbolic(count) else count  # type: ignore[return-value]


def surely_equal(*sizes: int) -> bool:
    """Whether a tracer's sizes are one expression; asking does not tie the trace to the answer."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import

    return all(statically_known_true(size == sizes[0]) for size in sizes[1:])


class AxisTiles(NamedTuple):
    """One axis cut into tiles of ``T`` queries, each with the ``S`` keys that hold their windows.

    ``query`` (tiles, T) and ``key`` (tiles, S) are positions in the map, always safe to read; ``query_ok`` and
    ``key_ok`` tell which of them exist (None: all). ``relation`` (tiles, T, S) is the index of each pair in a
    relative-position table of ``2 * kernel_size - 1`` rows, ``allowed`` which pairs attend (None: all).
    ``home_tile`` and ``home_offset`` (length,) say where every query position is.
    """

    query: Tensor
    query_ok: Tensor | None
    key: Tensor
    key_ok: Tensor | None
    relation: Tensor
    allowed: Tensor | None
    home_tile: Tensor
    home_offset: Tensor


class AxisPattern(NamedTuple):
    """A `LocalPattern` along one axis; see there for the meaning of the fields."""

    kernel_size: int
    stride: int
    dilation: int
    causal: bool
    boundary: str
    shift: int
    query_stride: int

    def first_key(self, query: Tensor, length: int | Tensor) -> Tensor:
        """First key of each query's window; both count inside one dilation group of ``length`` positions."""
        last = torch.as_tensor(length, device=query.device) - 1
        offset = self.stride - 1 if self.causal else self.stride // 2
        leader = torch.minimum(query // self.stride * self.stride + offset, last)
        if self.causal:
            return (leader - self.kernel_size + 1).clamp(min=0)
        return torch.minimum(leader - self.kernel_size // 2, last + 1 - self.kernel_size).clamp(min=0)

    @property
    def shifts(self) -> bool:
        """Whether the map is rolled; a tracer's shift counts as one."""
        return is_symbolic(self.shift) or self.shift != 0

    @property
    def block(self) -> int:
        """Queries that share one window under boundary="pad"."""
        return self.stride // self.query_stride

    def span(self, tile: int) -> int:
        """Keys that hold the windows of ``tile`` neighbouring queries (tiles start at multiples of ``tile``)."""
        if self.boundary == "pad" or self.stride % tile == 0:
            return self.kernel_size
        assert tile % self.stride == 0, "a tile holds whole stride groups, or divides one"
        return self.kernel_size + tile - self.stride

    def group_length(self, length: int) -> int:
        """Positions in the longest dilation group, or query positions in all blocks under boundary="pad"."""
        return ceil_div(length, self.dilation)

    def tile_count(self, length: int, tile: int) -> int:
        """Number of tiles along an axis of ``length`` keys."""
        if self.boundary == "pad":
            return ceil_div(length, self.stride) * ceil_div(self.block, tile)
        return self.dilation * ceil_div(self.group_length(length), tile)

    def keys(self, length: int, tile: int) -> int:
        """Keys that a tile reads along an axis of ``length`` keys."""
        if self.boundary == "pad":
            return self.span(tile)
        return torch.sym_min(self.span(tile), self.group_length(length))  # type: ignore[return-value]

    def tile_sizes(self, length: int) -> list[int]:
        """Tile lengths worth considering for an axis of ``length`` (concrete) keys."""
        if self.boundary == "pad":
            return sorted({ceil_div(self.block, parts) for parts in (1, 2, 3, 4, 8)})
        n, s = self.group_length(length), self.stride
        multiples = {
            min(ceil_div(size, s) * s, ceil_div(n, s) * s) for size in (1, 2, 4, 6, 7, 8, 12, 14, 16, 28, 32, n)
        }
        return sorted(multiples | {part for part in (1, 2, 4, 8) if s % part == 0})

    def tiles(self, key_length: int, query_length: int, tile: int, device: torch.device) -> AxisTiles:
        """Cut the axis into tiles of ``tile`` queries; into one where a tracer can tell that all see all keys."""
        if is_symbolic(self.kernel_size) and self._sees_all(key_length):
            return self._one_tile(key_length, device)
        if self.boundary == "pad":
            return self._padded_tiles(key_length, query_length, tile, device)
        return self._shifted_tiles(key_length, tile, device)

    def _sees_all(self, length: int) -> bool:
        """Whether a tracer can tell that every query's window is the axis."""
        if self.causal or self.shifts or not surely_equal(1, self.dilation, self.query_stride):
            return False
        return surely_equal(length, self.kernel_size, *[self.stride] * (self.boundary == "pad"))

    def _one_tile(self, length: int, device: torch.device) -> AxisTiles:
        at = torch.arange(length, device=device)
        relation = at[None] - at[:, None] + length - 1
        return AxisTiles(at[None], None, at[None], None, relation[None], None, torch.zeros_like(at), at)

    def _shifted_tiles(self, length: int, tile: int, device: torch.device) -> AxisTiles:
        k, d = self.kernel_size, self.dilation
        longest = self.group_length(length)
        span = self.keys(length, tile)
        count = several(ceil_div(longest, tile))
        index = torch.arange(d * count, device=device)[:, None]  # (tiles, 1), group by group
        group = index // count
        n = (length - group + d - 1) // d  # length of the tile's group
        query = (index - group * count) * tile + torch.arange(tile, device=device)  # (tiles, T)
        query_ok = query < n
        query = torch.minimum(query, n - 1)
        first = self.first_key(query, n)
        key = torch.minimum(first[:, :1], (n - span).clamp(min=0)) + torch.arange(span, device=device)  # (tiles, S)
        distance, offset = (key[:, None] - x[..., None] for x in (query, first))  # (tiles, T, S)
        allowed = (offset >= 0) & (offset < k) & (distance <= 0 if self.causal else (key < n)[:, None])
        position = torch.arange(length, device=device)
        member = position // d
        home = member // tile
        return AxisTiles(
            query=group + d * query,
            query_ok=None if not is_symbolic(length) and length % (d * tile) == 0 else query_ok,
            key=group + d * torch.minimum(key, n - 1),
            key_ok=None,
            relation=(distance + k - 1).clamp(0, 2 * k - 2),
            allowed=None if not is_symbolic(span) and span == k and not self.causal else allowed,
            home_tile=(position - member * d) * count + home,
            home_offset=member - home * tile,
        )

    def _padded_tiles(self, key_length: int, query_length: int, tile: int, device: torch.device) -> AxisTiles:
        k, block = self.kernel_size, self.block
        blocks, parts = ceil_div(key_length, self.stride), ceil_div(block, tile)
        canvas = blocks * self.stride
        index = torch.arange(several(blocks) * parts, device=device)[:, None]  # (tiles, 1), block by block
        at = index // parts
        inside = (index - at * parts) * tile + torch.arange(tile, device=device)  # (tiles, T)
        reach = torch.arange(k, device=device) - (k - self.stride) // 2  # key offsets from the block's first pixel
        rolled_query, rolled_key = at * block + inside, at * self.stride + reach
        query, key = rolled_query, rolled_key
        allowed = None
        if self.shifts:
            query, key = fold(rolled_query + self.shift, canvas), fold(rolled_key + self.shift, canvas)
            allowed = self._region(rolled_query, canvas)[:, :, None] == self._region(rolled_key, canvas)[:, None]
        alike = inside[:1] if parts == 1 else inside
        exact = not is_symbolic(key_length, query_length)
        whole = exact and parts * tile == block and query_length == blocks * block
        position = torch.arange(query_length, device=device)
        if self.shifts:
            position = fold(position - self.shift, canvas)
        home = position // block
        within = position - home * block
        part = within // tile
        return AxisTiles(
            query=query.clamp(max=query_length - 1),
            query_ok=None if whole else (inside < block) & (query < query_length) & (at < blocks),
            key=key.clamp(0, key_length - 1),
            key_ok=None if exact and k == self.stride and key_length == canvas else (key >= 0) & (key < key_length),
            relation=(torch.arange(k, device=device) - alike[..., None] + k - 1).clamp(0, 2 * k - 2),
            allowed=allowed,
            home_tile=home * parts + part,
            home_offset=within - part * tile,
        )

    def _region(self, rolled: Tensor, canvas: int) -> Tensor:
        """Label of a position on the rolled canvas; only equal labels were neighbours before the roll."""
        return (rolled >= canvas - self.stride).long() + (rolled >= canvas - self.shift).long()


@dataclass(frozen=True)
class LocalPattern:
    """Which box of keys each query attends to. Every field takes one value for all axes or one per axis.

    Args:
        kernel_size: Keys per axis.
        stride: Queries that share one window. 1 slides the window (neighborhood attention); ``stride=kernel_size``
            gives non-overlapping windows, values between give generalized neighborhood attention.
        dilation: Distance between keys; each residue class is an axis of its own.
        causal: Keys after the query are hidden along this axis.
        boundary: "shift" moves a window that would leave the map back inside, so each query always sees
            ``kernel_size`` keys. "pad" keeps blocks of `stride` queries in place, with
            ``(kernel_size - stride) / 2`` keys of halo on each side: keys outside the map hold the pad value
            (zero unless given) and take part in the softmax.
        shift: Cyclic shift of the blocks (Swin), boundary="pad" without halo only. Positions that the roll made
            neighbours do not see each other.
        query_stride: Keys per query along the axis (halo attention that downsamples), boundary="pad" only.

    Raises:
        ValueError: A value is out of range, or the fields do not fit together.

    Papers: neighborhood attention, arXiv 2204.07143; dilated, 2209.15001; generalized, 2504.16922; shifted
    windows, 2103.14030; halo, 2103.12731.
    """

    kernel_size: Size
    stride: Size = 1
    dilation: Size = 1
    causal: bool | Sequence[bool] = False
    boundary: str = "shift"
    shift: Size = 0
    query_stride: Size = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, field.name, tuple(value))
        if self.boundary not in BOUNDARIES:
            raise ValueError(f"boundary={self.boundary!r} is unknown; use one of {', '.join(BOUNDARIES)}")
        lengths = {len(v) for v in vars(self).values() if isinstance(v, tuple)}
        if len(lengths) > 1 or not lengths <= {1, 2, 3}:
            raise ValueError(f"{self} mixes values for different numbers of axes; give one value, or one for each axis")
        for index in range(max(lengths, default=1)):
            self._check_axis(index)

    def along(self, axis: int) -> AxisPattern:
        """The pattern along one axis."""
        return AxisPattern(*(v[axis] if isinstance(v, tuple) else v for v in vars(self).values()))

    def axes(self, rank: int) -> tuple[AxisPattern, ...]:
        """The pattern along each of ``rank`` axes.

        Raises:
            ValueError: A field has values for another number of axes.
        """
        for name, value in vars(self).items():
            if isinstance(value, tuple) and len(value) != rank:
                raise ValueError(f"{name}={value} has {len(value)} values, but the map has {rank} axes")
        return tuple(self.along(axis) for axis in range(rank))

    def _check_axis(self, index: int) -> None:
        a = self.along(index)
        for name, least in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("shift", 0), ("query_stride", 1)):
            value = getattr(a, name)
            if is_symbolic(value):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value!r} is not allowed; use an integer of at least {least}")
        if not isinstance(a.causal, bool):
            raise ValueError(f"causal={a.causal!r} is not allowed; use True or False, one for each axis at most")
        if not is_symbolic(a.kernel_size) and a.stride > a.kernel_size:
            raise ValueError(f"stride={a.stride} exceeds kernel_size={a.kernel_size}; use at most the kernel size")
        if a.boundary == "shift" and (a.shifts or a.query_stride != 1):
            raise ValueError(f"shift={a.shift} and query_stride={a.query_stride} need boundary='pad'")
        if a.boundary == "pad":
            self._check_padded(a)

    @staticmethod
    def _check_padded(a: AxisPattern) -> None:
        if a.causal or a.dilation != 1:
            raise ValueError(f"causal={a.causal} and dilation={a.dilation} need boundary='shift'")
        if (a.kernel_size - a.stride) % 2:
            raise ValueError(
                f"kernel_size={a.kernel_size} minus stride={a.stride} is odd; boundary='pad' needs the same halo on "
                "both sides"
            )
        if a.shifts and (a.kernel_size != a.stride or a.query_stride != 1):
            raise ValueError(f"shift={a.shift} needs windows without halo: kernel_size equal to stride")
        if not is_symbolic(a.shift) and a.shift >= a.kernel_size:
            raise ValueError(f"shift={a.shift} must be below the window size {a.kernel_size}")
        if a.stride % a.query_stride:
            raise ValueError(f"query_stride={a.query_stride} does not divide the block of {a.stride}")

    def __str__(self) -> str:
        """Short name for logs and test ids, such as ``k7-d2`` or ``k14-s8-pad``."""

        def text(value: object) -> str:
            return "x".join(str(int(v)) for v in value) if isinstance(value, tuple) else str(int(value))  # type: ignore[call-overload]

        parts = [f"k{text(self.kernel_size)}"]
        for letter, name, default in (("s", "stride", 1), ("d", "dilation", 1), ("c", "causal", False),
                                      ("r", "shift", 0), ("q", "query_stride", 1)):  # fmt: skip
            value = getattr(self, name)
            if value != default:
                parts.append(letter + text(value))
        return "-".join(parts + (["pad"] if self.boundary == "pad" else []))

    def visits(self, tile: Sequence[int], size: Sequence[int]) -> int:
        """Query-key pairs computed on a map of ``size`` when it is walked in tiles of ``tile`` queries."""
        total = 1
        for axis, length, side in zip(self.axes(len(size)), size, tile, strict=True):
            total *= axis.tile_count(length, side) * side * axis.keys(length, side)
        return total
