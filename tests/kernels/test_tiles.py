# SPDX-License-Identifier: Apache-2.0
"""The choice of tiles: how many keys the kernels visit, the same answer every time, measurements first."""

import json
import math

import pytest
import torch

from visionattn.kernels import LocalPattern, tiles
from visionattn.kernels.tiles import DEVICES, KERNELS, LocalProblem, Tile


@pytest.fixture(autouse=True)
def no_measurements(monkeypatch, tmp_path):
    monkeypatch.setenv(tiles.CACHE_VARIABLE, str(tmp_path / "tiles.json"))
    tiles.measured.cache_clear()
    tiles.tiles.cache_clear()
    yield
    tiles.measured.cache_clear()
    tiles.tiles.cache_clear()


def problem(size, head_dim=32, element_bytes=2, bias=False, relative=False, **fields):
    return LocalProblem(LocalPattern(**fields), size, size, head_dim, head_dim, element_bytes, bias, relative)


def window(side, size, **more):
    return problem((size, size), kernel_size=side, stride=side, boundary="pad", **more)


# --- visited keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize(("kernel", "size", "most"), [(7, 56, 4.0), (13, 64, 2.6)])
def test_few_keys_are_visited_for_each_that_is_needed(kernel, size, most, head_dim, device):
    """Slots that only fill the matrix units are counted too."""
    case = problem((size, size), head_dim, kernel_size=kernel, bias=True)
    for name in KERNELS:
        tile = getattr(tiles.tiles(case, device), name)
        assert tiles.visited(case, tile, name == "backward_key", padded=True) <= most


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("side", [7, 8, 12, 16, 24])
def test_windows_visit_their_own_keys_alone(side, device):
    case = window(side, 2 * side, bias=True)
    tiling = tiles.tiles(case, device)
    for name in KERNELS[:2] if tiling.fused else KERNELS:  # fused: one kernel makes all gradients
        assert tiles.visited(case, getattr(tiling, name), name == "backward_key") == 1.0


BLOCK_SPARSE = [
    problem((256, 256), 128, kernel_size=80, stride=16),
    problem((64, 64), 64, kernel_size=16, stride=16),
    problem((30, 48, 80), 128, kernel_size=(18, 24, 24), stride=(16, 8, 8)),
    problem((32768,), 128, kernel_size=2048, stride=256),
]


@pytest.mark.parametrize("case", BLOCK_SPARSE, ids=lambda case: str(case.pattern))
def test_perfectly_block_sparse_settings_visit_nothing_else(case):
    """The last, incomplete group of a strided axis may share a tile with nobody; it is the only rounding."""
    tiling = tiles.tiles(case, DEVICES["sm_90"])
    case = tiles.canonical(case)
    groups = zip(case.key_size, _each(case.pattern.stride, case), strict=True)
    rounding = math.prod(-(-n // stride) * stride / n for n, stride in groups)
    assert tiles.visited(case, tiling.forward, padded=True) <= rounding + 1e-9


def _each(value, case):
    return value if isinstance(value, tuple) else (value,) * len(case.key_size)


def brute_force(case, tile, of_keys):
    """Pieces that the kernel takes, walked position by position along each axis."""
    total = 1
    axes, size = tiles.three_axes(case)
    for axis, length, side, box in zip(axes, size, tile.tile, tile.box, strict=True):
        boxes = 0
        for group in range(axis.dilation):
            n = (length - group + axis.dilation - 1) // axis.dilation
            query = torch.arange(n)
            first = axis.first_key(query, n)
            sees = (query[None] >= first[:, None]) & (query[None] < first[:, None] + axis.kernel_size)
            if axis.causal:
                sees &= query[None] <= query[:, None]
            if of_keys:
                sees = sees.T
            for start in range(0, n, side):
                seen = sees[start : start + side].any(0).nonzero()
                boxes += -(-int(seen[-1] - seen[0] + 1) // box)
        total *= boxes
    return total


@pytest.mark.parametrize("of_keys", [False, True], ids=["queries", "keys"])
@pytest.mark.parametrize(
    "case",
    [
        problem((11, 13), kernel_size=(5, 4)),
        problem((17, 12), kernel_size=(6, 3), stride=(3, 2)),
        problem((19, 16), kernel_size=3, dilation=(2, 4)),
        problem((15, 9), kernel_size=5, stride=2, causal=(True, False)),
    ],
    ids=lambda case: str(case.pattern),
)
def test_the_walk_is_counted_as_it_happens(case, of_keys):
    few = [tile for tile in tiles._candidates(case, of_keys, True, DEVICES["sm_90"]) if tile.pieces == 1][::7]
    assert few
    for tile in few:
        assert tiles.walk(case, tile, of_keys)[1] == brute_force(case, tile, of_keys)


def test_halo_blocks_need_the_queries_of_neighbouring_blocks():
    axis = LocalPattern(14, 8, boundary="pad").along(0)
    whole = tiles.extents(axis, 32, 8, True)
    assert whole.counts == ((16, 2), (24, 2))  # blocks at the border are seen by two, the others by three
    assert tiles.extents(axis, 32, 8, False).counts == ((14, 4),)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_tiles_are_a_pure_function_of_problem_and_device():
    case = problem((56, 56), kernel_size=7)
    first = tiles.tiles(case, DEVICES["sm_80"])
    tiles.tiles.cache_clear()
    tiles.extents.cache_clear()
    assert tiles.tiles(case, DEVICES["sm_80"]) == first


def test_long_maps_share_the_tiles_of_shorter_ones():
    """Images of every size in a detector's training do not each cost a search."""
    long, longer = (problem((n, n + 31), kernel_size=7, bias=True) for n in (700, 1400))
    assert tiles.canonical(long) == tiles.canonical(longer)
    assert tiles.tiles(long, DEVICES["sm_90"]) == tiles.tiles(longer, DEVICES["sm_90"])


CASES = [
    problem((56, 56), 32, kernel_size=7, bias=True),
    problem((14, 14), 32, kernel_size=7),
    window(7, 56, bias=True),
    window(12, 96, bias=True),
    window(24, 48),
    problem((64, 64), 16, kernel_size=14, stride=8, boundary="pad", relative=True),
    problem((8, 28, 28), 64, kernel_size=(3, 7, 7), causal=(True, False, False)),
    problem((4096,), 128, kernel_size=63, dilation=8),
    problem((1, 1), 256, kernel_size=1),
    problem((128, 128), 256, 4, kernel_size=9, bias=True),
]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.pattern))
def test_every_choice_fits_the_matrix_units_and_the_chip(case, device):
    for name in KERNELS:
        tile: Tile = getattr(tiles.tiles(case, device), name)
        mine, other = (tile.columns, tile.rows) if name == "backward_key" else (tile.rows, tile.columns)
        assert math.prod(tile.tile) <= mine
        assert math.prod(tile.box) <= other * tile.pieces
        assert {tile.rows, tile.columns} <= {16, 32, 64, 128} and tile.warps in (1, 2, 4, 8)
        if device.name != "gfx942" or case.element_bytes * case.head_dim <= 512:  # wider ones get the torch path
            assert tiles._shared(case, tile, tile.stages, name == "backward_key") <= device.shared


# --- measurements ----------------------------------------------------------------------------------------------------


def test_measurements_take_precedence(tmp_path):
    case, device = problem((56, 56), kernel_size=7), DEVICES["sm_90"]
    modelled = tiles.tiles(case, device)
    other = modelled._replace(forward=modelled.forward._replace(stages=modelled.forward.stages + 1))
    content = {"tilings": {tiles.key_of(tiles.canonical(case), device): tiles.to_json(other)}}
    tiles.cache_path().write_text(json.dumps(content))
    tiles.measured.cache_clear()
    tiles.tiles.cache_clear()
    assert tiles.tiles(case, device) == other
    assert tiles.tiles(case, DEVICES["sm_80"]) != other


@pytest.mark.parametrize("content", ["", "[]", '{"tilings": {"x": {}}}', '{"tilings": 3}'])
def test_a_file_that_is_none_of_ours_is_named(content):
    tiles.cache_path().write_text(content)
    with pytest.raises(ValueError, match="tiles.json.*remove it"):
        tiles.measured()
