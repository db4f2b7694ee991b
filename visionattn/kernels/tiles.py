# SPDX-License-Identifier: Apache-2.0
"""How the Triton kernels cut a problem into tiles: an explicit model of the cost, the same answer every time.

A kernel owns tiles of one side (queries in the forward, keys in the gradients of keys) and walks the other side in
boxes. The model counts, from the walk itself, the pairs of slots that are computed, the bytes that are read and the
steps that are taken, and weighs them with a device's rates. Measurements of `visionattn tune` take precedence where
there are any.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from visionattn.kernels.pattern import AxisPattern, LocalPattern, ceil_div

Triple = tuple[int, int, int]
CACHE_VARIABLE = "VISIONATTN_TILES"
KERNELS = ("forward", "backward_query", "backward_key")
ADDRESS = 40  # operations that find the place of 16 bytes in memory
LATENCY = 500  # clock cycles of one dependent step: load, product, softmax, product
SLACK = 1.1  # ratio of costs below which the model is not trusted to tell two tiles apart
RESIDENT_WARPS = 32  # warps that hide each other's latency on a processor


class Device(NamedTuple):
    """Rates of a device, for each of its processors and clock cycle, and what a program may use of one.

    Attributes:
        name: Such as "sm_90" or "gfx942".
        processors: Streaming multiprocessors, or compute units.
        shared: Bytes of on-chip memory that a program may use.
        products: Half-precision multiply-adds of the matrix units.
        lanes: Float32 operations.
        specials: Exponentials.
        traffic: Bytes from the cache that all processors share.
        from_shared: Whether the matrix units take operands from shared memory, not from registers.
    """

    name: str
    processors: int
    shared: int
    products: int
    lanes: int
    specials: int
    traffic: int
    from_shared: bool


DEVICES = {
    device.name: device
    for device in (
        Device("sm_80", 108, 166_912, 1024, 128, 16, 40, False),
        Device("sm_90", 132, 232_448, 2048, 128, 16, 32, True),
        Device("sm_100", 148, 232_448, 4096, 128, 16, 40, True),
        Device("gfx942", 304, 65_536, 1024, 128, 16, 32, False),
    )
}
# Smaller members of a family: the same rates, less shared memory.
SMALLER_SHARED = {"sm_75": 65_536, "sm_86": 101_376, "sm_89": 101_376, "sm_120": 101_376}


class LocalProblem(NamedTuple):
    """What decides about the tiles of a call of local attention; sizes along each axis of the map."""

    pattern: LocalPattern
    query_size: tuple[int, ...]
    key_size: tuple[int, ...]
    head_dim: int
    v_head_dim: int
    element_bytes: int
    bias: bool = False
    relative: bool = False


class Tile(NamedTuple):
    """How one kernel walks a problem.

    Attributes:
        tile: Slots that a program owns, along each of three axes.
        box: Slots of the other side that it takes at a time.
        pieces: In how many parts a box is taken; above 1 it covers all that a tile needs.
        rows: Slots of queries as the matrix units see them (padded).
        columns: Slots of keys.
        warps: Warps of a program.
        stages: Depth of the pipeline of loads.
    """

    tile: Triple
    box: Triple
    pieces: int
    rows: int
    columns: int
    warps: int
    stages: int


class Tiling(NamedTuple):
    """The tiles of the three kernels; `fused`: one kernel makes all gradients (windows that fit one tile)."""

    forward: Tile
    backward_query: Tile
    backward_key: Tile
    fused: bool


# --- the walk --------------------------------------------------------------------------------------------------------


class Extents(NamedTuple):
    """Tiles of an axis by how much of the other side they need: {slots: tiles}."""

    counts: tuple[tuple[int, int], ...]

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return sum(count for _, count in self.counts)

    @property
    def longest(self) -> int:
        """Most slots that a tile needs."""
        return max(extent for extent, _ in self.counts)

    def boxes(self, side: int) -> int:
        """Boxes of `side` slots that all tiles take together."""
        return sum(ceil_div(extent, side) * count for extent, count in self.counts)


@lru_cache(maxsize=4096)
def extents(axis: AxisPattern, length: int, side: int, of_keys: bool) -> Extents:
    """What tiles of `side` slots need along an axis of `length` keys.

    Args:
        axis: The pattern along the axis.
        length: Keys of the axis.
        side: Queries of a tile; its keys if `of_keys`.
        of_keys: Whether tiles are of keys and need queries, as in the kernel of their gradients.
    """
    found: Counter[int] = Counter()
    if axis.boundary == "pad":
        blocks = ceil_div(length, axis.stride)
        if not of_keys:
            return Extents(((axis.kernel_size, blocks * ceil_div(axis.block, side)),))
        halo = (axis.kernel_size - axis.stride) // 2
        for at in range(blocks):
            for start in range(at * axis.stride, (at + 1) * axis.stride, side):
                stop = min(start + side, (at + 1) * axis.stride)
                low = max(-((axis.kernel_size - 1 - halo - start) // axis.stride), 0)
                high = min((stop - 1 + halo) // axis.stride, blocks - 1)
                found[(high - low + 1) * axis.block] += 1
        return Extents(tuple(sorted(found.items())))
    lengths = Counter((length - g + axis.dilation - 1) // axis.dilation for g in range(axis.dilation))
    start = torch.arange(0, axis.group_length(length), side)
    for group_length, groups in lengths.items():
        query = torch.arange(group_length)
        first = axis.first_key(query, group_length)
        stop = query + 1 if axis.causal else first + axis.kernel_size
        end = (start + side).clamp(max=group_length)
        if of_keys:  # windows are monotone: those that meet a tile are neighbours
            need = torch.searchsorted(first, end) - torch.searchsorted(stop, start, right=True)
        else:
            need = stop[end - 1] - first[start.clamp(max=group_length - 1)]
        for extent, count in Counter(need.where(end > start, 0).tolist()).items():
            found[extent] += groups * count
    return Extents(tuple(sorted(found.items())))


def three_axes(problem: LocalProblem) -> tuple[tuple[AxisPattern, AxisPattern, AxisPattern], Triple]:
    """The pattern and the key sizes along three axes, the first of which may be trivial."""
    axes = problem.pattern.axes(len(problem.key_size))
    trivial = AxisPattern(1, 1, 1, False, problem.pattern.boundary, 0, 1)
    missing = 3 - len(axes)
    return (trivial,) * missing + axes, (1,) * missing + tuple(problem.key_size)  # type: ignore[return-value]


def walk(problem: LocalProblem, tile: Tile, of_keys: bool = False) -> tuple[int, int]:
    """Tiles of one image and head, and pieces that they take of the other side."""
    axes, size = three_axes(problem)
    needs = [extents(axis, length, side, of_keys) for axis, length, side in zip(axes, size, tile.tile, strict=True)]
    tiles = math.prod(need.tiles for need in needs)
    if tile.pieces == 1:
        return tiles, math.prod(need.boxes(side) for need, side in zip(needs, tile.box, strict=True))
    width = tile.columns
    rows = sum(ceil_div(extent * tile.box[1] * tile.box[2], width) * count for extent, count in needs[0].counts)
    return tiles, rows * needs[1].tiles * needs[2].tiles


def visited(problem: LocalProblem, tile: Tile, of_keys: bool = False, padded: bool = False) -> float:
    """Keys that the kernel computes for each query, over those that it needs.

    Args:
        problem: The problem.
        tile: The kernel's tile.
        of_keys: Whether tiles are of keys.
        padded: Count slots that only fill the matrix units too.
    """
    axes, size = three_axes(problem)
    tiles, pieces = walk(problem, tile, of_keys)
    slots = math.prod(tile.box) if tile.pieces == 1 else tile.columns
    pairs = pieces * math.prod(tile.tile) * slots
    if padded:
        pairs = pieces * tile.rows * tile.columns
    elif tile.pieces > 1:  # the last piece of a box may be cut off
        needs = [extents(axis, length, side, of_keys) for axis, length, side in zip(axes, size, tile.tile, strict=True)]
        rows = sum(extent * count for extent, count in needs[0].counts)
        pairs = rows * tile.box[1] * tile.box[2] * needs[1].tiles * needs[2].tiles * math.prod(tile.tile)
    queries = math.prod(ceil_div(length, axis.stride) * axis.block if axis.boundary == "pad" else length
                        for axis, length in zip(axes, size, strict=True))  # fmt: skip
    return pairs / (queries * math.prod(axis.kernel_size for axis in axes))


# --- candidates ------------------------------------------------------------------------------------------------------


def power_of_two(n: int) -> int:
    """Smallest power of two not below n."""
    return 1 << (n - 1).bit_length()


def _sides(axis: AxisPattern, length: int, of_keys: bool, most: int) -> list[int]:
    """Lengths of tiles worth considering along an axis."""
    if axis.boundary == "pad":
        block = axis.stride if of_keys else axis.block
        return [side for side in range(1, min(block, most) + 1) if block % side == 0]
    n, stride = axis.group_length(length), axis.stride
    sides = {1, 2, 4, 8, 16, 32, 64, 128, *(ceil_div(n, parts) for parts in (1, 2, 3, 4))}
    if not of_keys:  # tiles hold whole groups of queries that share a window, or divide one
        sides = {s for s in sides if stride % s == 0} | {s for s in sides if s % stride == 0}
        sides |= {s for s in range(1, stride + 1) if stride % s == 0}
        sides |= {ceil_div(s, stride) * stride for s in (4, 8, 16)}
    return sorted(s for s in sides if s <= min(most, ceil_div(n, stride) * stride))


def _boxes(longest: Triple, columns: int) -> Iterator[tuple[Triple, int]]:
    """Boxes of `columns` slots, and the box of everything taken in pieces."""
    whole = math.prod(longest)
    yield longest, ceil_div(whole, columns)
    if whole <= columns:
        return
    for last in (4, 8, 16, 32, 64, 128):
        for middle in (1, 2, 4, 8, 16):
            first = columns // (last * middle)
            if first >= 1 and first * last * middle == columns:
                box = (first, middle, last)
                if all(side <= power_of_two(need) for side, need in zip(box, longest, strict=True)):
                    yield box, 1


def _warps(problem: LocalProblem, rows: int, columns: int, backward: bool, device: Device) -> int:
    """Warps that keep a tile of logits and its accumulators in registers; the backward holds several of each."""
    width = power_of_two(max(problem.head_dim, problem.v_head_dim, 16))
    numbers = rows * columns + (rows + columns) * width // (1 if backward else 2)
    if problem.bias and backward:  # addresses of a bias outweigh the operands of narrow heads
        numbers = max(numbers, 4 * rows * columns)
    elif problem.bias and width >= 64:
        numbers += rows * columns
    numbers *= problem.element_bytes // 2 * (2 if problem.relative else 1)  # operands in registers; more addresses
    least = rows // (16 if problem.element_bytes == 4 else 32)
    # Products of float32 numbers take operands in registers, not in shared memory; so do all on some devices, and on
    # the others those of fewer than 64 rows.
    in_registers = problem.element_bytes == 4 or (width >= 128 and (rows < 64 or not device.from_shared))
    most = 1024 if backward or in_registers else 2048
    if problem.element_bytes == 4 and width >= 128:
        most = 512
    return min(max(power_of_two(numbers // most), least, 1), 8)


def _shared(problem: LocalProblem, tile: Tile, stages: int, of_keys: bool) -> int:
    """Estimate of the shared memory of a program, in bytes."""
    width = power_of_two(max(problem.head_dim, 16)) + power_of_two(max(problem.v_head_dim, 16))
    moving, resting = (tile.rows, tile.columns) if of_keys else (tile.columns, tile.rows)
    return (stages * moving * width + resting * width + tile.rows * tile.columns) * problem.element_bytes


def _limits(problem: LocalProblem, backward: bool, device: Device) -> tuple[int, int]:
    """Most logits of a tile, and most rows or columns, that stay in registers (`benchmarks/compile_report.py`)."""
    width = power_of_two(max(problem.head_dim, problem.v_head_dim, 16))
    logits = 8192 if width <= 64 else 4096 if width <= 128 else 2048
    side = 128 if width <= 128 else 64
    if problem.element_bytes == 4:
        logits, side = logits // 4, side // 2
    if problem.bias or problem.relative:  # their addresses take registers too
        logits //= 2
    if backward:
        logits //= 2
    if not device.from_shared and width >= (64 if backward else 128):  # operands take registers
        logits //= 4 if problem.relative and width >= 128 else 2
    elif problem.element_bytes == 4 and width >= 128 and not backward:
        logits //= 2
    return max(logits, 256), side  # the matrix units take 16 x 16 at least


def _candidates(problem: LocalProblem, of_keys: bool, backward: bool, device: Device) -> Iterator[Tile]:
    axes, size = three_axes(problem)
    logits, most = _limits(problem, backward, device)
    sides = [_sides(axis, length, of_keys, most) for axis, length in zip(axes, size, strict=True)]
    for tile in itertools.product(*sides):
        owned = math.prod(tile)
        if owned > most:
            continue
        mine = max(16, power_of_two(owned))
        longest: Triple = tuple(
            max(extents(axis, length, side, of_keys).longest, 1)
            for axis, length, side in zip(axes, size, tile, strict=True)
        )  # type: ignore[assignment]
        for other in (16, 32, 64, 128):
            if other > most or mine * other > logits:
                continue
            for box, pieces in _boxes(longest, other):
                if of_keys and pieces > 1:
                    continue
                rows, columns = (other, mine) if of_keys else (mine, other)
                yield Tile(tile, box, pieces, rows, columns, _warps(problem, rows, columns, backward, device), 1)


def cost(problem: LocalProblem, tile: Tile, device: Device, of_keys: bool = False, backward: bool = False) -> float:
    """Clock cycles of one processor for one image and head, by the model."""
    axes, _ = three_axes(problem)
    tiles, pieces = walk(problem, tile, of_keys)
    logits = pieces * tile.rows * tile.columns
    width = power_of_two(max(problem.head_dim, 16)) + power_of_two(max(problem.v_head_dim, 16))
    products = logits * width * (2.5 if backward else 1.0)
    rate = device.products if problem.element_bytes == 2 else device.lanes
    if problem.element_bytes == 2 and device.name == "sm_90" and (tile.rows < 64 or tile.warps < 4):
        rate //= 2  # wide matrix instructions take 64 rows
    full = sum(not _shared_window(axis, side) or of_keys for axis, side in zip(axes, tile.tile, strict=True))
    operations = 6 + 4 * full + 5 * problem.bias + 10 * problem.relative + 6 * backward
    moving, resting = (tile.rows, tile.columns) if of_keys else (tile.columns, tile.rows)
    moved = (pieces * moving + tiles * 2 * resting) * (problem.head_dim + problem.v_head_dim) * problem.element_bytes
    operations = logits * operations + moved / 16 * ADDRESS
    waiting = (pieces + 4 * tiles) * LATENCY * tile.warps / RESIDENT_WARPS
    return products / rate + operations / device.lanes + logits / device.specials + moved / device.traffic + waiting


def _shared_window(axis: AxisPattern, side: int) -> bool:
    """Whether all queries of a tile have the same window."""
    return not axis.causal and (axis.boundary == "pad" or axis.stride % side == 0)


def _best(problem: LocalProblem, device: Device, of_keys: bool, backward: bool) -> Tile:
    """The tile that visits the fewest pairs among those that the model can't tell from the cheapest."""
    priced = [(cost(problem, t, device, of_keys, backward), t) for t in _candidates(problem, of_keys, backward, device)]
    cheapest = min(price for price, _ in priced)

    def pairs(entry: tuple[float, Tile]) -> tuple[int, float, Tile]:
        price, tile = entry
        return walk(problem, tile, of_keys)[1] * tile.rows * tile.columns, price, tile

    tile = min((entry for entry in priced if entry[0] <= SLACK * cheapest), key=pairs)[1]
    stages = 1
    if walk(problem, tile, of_keys)[1] > walk(problem, tile, of_keys)[0]:
        depths = (3, 2) if problem.element_bytes == 2 else (2,)
        stages = next((n for n in depths if _shared(problem, tile, n, of_keys) <= device.shared // 2), 1)
    return tile._replace(stages=stages)


def can_fuse(problem: LocalProblem, tile: Tile) -> bool:
    """Whether a tile is a whole window of queries and keys that no other tile needs."""
    axes, _ = three_axes(problem)
    windows = all(axis.boundary == "pad" and axis.kernel_size == axis.stride == axis.block == side
                  for axis, side in zip(axes, tile.tile, strict=True))  # fmt: skip
    return windows and tile.pieces == 1 and tile.box == tile.tile


def _window_tile(problem: LocalProblem, backward: bool, device: Device) -> Tile | None:
    """The tile that is a whole window, where it fits."""
    axes, _ = three_axes(problem)
    side: Triple = tuple(axis.block for axis in axes)  # type: ignore[assignment]
    tokens = max(16, power_of_two(math.prod(side)))
    width = power_of_two(max(problem.head_dim, problem.v_head_dim, 16))
    # The backward holds three gradients besides.
    if tokens > 64 or width > (64 if problem.element_bytes == 2 and not backward else 32):
        return None
    tile = Tile(side, side, 1, tokens, tokens, _warps(problem, tokens, tokens, backward, device), 1)
    return tile if can_fuse(problem, tile) else None


def _bucket(axis: AxisPattern, length: int) -> int:
    """A length with the same tiles: long axes differ only in how many there are."""
    n = axis.stride if axis.boundary == "pad" else axis.dilation
    many = max(256, 4 * axis.kernel_size * axis.dilation, 8 * n)
    return length if length <= many else many


def canonical(problem: LocalProblem) -> LocalProblem:
    """The problem whose tiles are taken: maps above a size share them."""
    axes = problem.pattern.axes(len(problem.key_size))
    size = tuple(_bucket(axis, length) for axis, length in zip(axes, problem.key_size, strict=True))
    return problem._replace(query_size=size, key_size=size)


@lru_cache(maxsize=1024)
def tiles(problem: LocalProblem, device: Device) -> Tiling:
    """The tiles of a problem on a device: those that were measured fastest there, else those the model finds cheapest.

    Args:
        problem: The problem; build it with the sizes of the map.
        device: One of `DEVICES`, or from `device_of`.
    """
    problem = canonical(problem)
    known = measured().get(key_of(problem, device))
    if known is not None:
        return known
    window, gradient = _window_tile(problem, False, device), _window_tile(problem, True, device)
    if window is not None and gradient is not None:
        return Tiling(window, gradient, _best(problem, device, of_keys=True, backward=True), True)
    forward = _best(problem, device, of_keys=False, backward=False)
    query = _best(problem, device, of_keys=False, backward=True)
    return Tiling(forward, query, _best(problem, device, of_keys=True, backward=True), False)


# --- devices and measurements ----------------------------------------------------------------------------------------


def device_of(device: torch.device) -> Device:
    """The rates of a device; the nearest known ones for others, and "sm_90" for the interpreter."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return DEVICES["sm_90"]
    return _device(device.index if device.index is not None else torch.cuda.current_device())


@lru_cache(maxsize=16)
def _device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return DEVICES["gfx942"]._replace(
            name=properties.gcnArchName.split(":")[0], processors=properties.multi_processor_count
        )
    capability = properties.major * 10 + properties.minor
    base = DEVICES["sm_100" if capability >= 100 else "sm_90" if capability >= 90 else "sm_80"]
    name = f"sm_{capability}"
    shared = SMALLER_SHARED.get(name, base.shared)
    return base._replace(name=name, processors=properties.multi_processor_count, shared=shared,
                         from_shared=properties.major in (9, 10))  # fmt: skip


def cache_path() -> Path:
    """Where `visionattn tune` keeps its measurements: VISIONATTN_TILES, or the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(named) if named else base / "visionattn" / "tiles.json"


def key_of(problem: LocalProblem, device: Device) -> str:
    """Name of a problem in the file of measurements."""
    size = "x".join(map(str, problem.key_size))
    extras = "-bias" * problem.bias + "-rel" * problem.relative
    widths = f"d{problem.head_dim}-{problem.v_head_dim}/b{problem.element_bytes}"
    return f"{device.name}/{problem.pattern}/{size}/{widths}{extras}"


@lru_cache(maxsize=1)
def measured() -> dict[str, Tiling]:
    """What `visionattn tune` measured on this machine; empty without its file.

    Raises:
        ValueError: The file is not one of its files.
    """
    path = cache_path()
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} can't be read as measurements of tiles ({error}); remove it, or set {CACHE_VARIABLE}"
        ) from error
    try:
        return {key: from_json(entry) for key, entry in content["tilings"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no measurements of tiles; remove it, or set {CACHE_VARIABLE}") from error


def to_json(tiling: Tiling) -> dict[str, Any]:
    """A tiling as JSON keeps it."""
    return {name: getattr(tiling, name)._asdict() for name in KERNELS} | {"fused": tiling.fused}


def from_json(entry: dict[str, Any]) -> Tiling:
    """The inverse of `to_json`."""
    kernels = [Tile(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry[name].items()}) for name in KERNELS]
    return Tiling(*kernels, fused=bool(entry["fused"]))
