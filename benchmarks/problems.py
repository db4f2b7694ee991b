# SPDX-License-Identifier: Apache-2.0
"""The problems of `benchmarks/kernels.py`, list by list, and how much work each of them is."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from visionattn.kernels import LocalPattern
from visionattn.kernels.pattern import AxisPattern

PIXELS = 64 * 56 * 56  # of one step in the stages of models: a batch of 64 at 224


class Problem(NamedTuple):
    """A call of local attention on a packed qkv projection.

    `gates` names the promises that it is held to; `quick` puts it into the subset that takes minutes.
    """

    group: str
    pattern: LocalPattern
    size: tuple[int, ...]
    batch: int
    heads: int
    head_dim: int
    bias: bool = False
    gates: tuple[str, ...] = ()
    quick: bool = False

    @property
    def name(self) -> str:
        """Such as ``k7 56x56 b8 h4 d32``."""
        size = "x".join(map(str, self.size))
        return f"{self.pattern} {size} b{self.batch} h{self.heads} d{self.head_dim}" + " bias" * self.bias

    @property
    def axes(self) -> tuple[AxisPattern, ...]:
        """The pattern along each axis."""
        return self.pattern.axes(len(self.size))

    @property
    def kind(self) -> str:
        """Such as "window"."""
        if self.pattern.boundary == "shift":
            return "neighborhood"
        return "window" if all(axis.kernel_size == axis.stride for axis in self.axes) else "halo"

    @property
    def pairs(self) -> int:
        """Query-key pairs of all heads and images; those that a shifted window hides count, as its grid has them."""
        return self.batch * self.heads * math.prod(_pairs(a, n) for a, n in zip(self.axes, self.size, strict=True))

    @property
    def density(self) -> float:
        """Share of the pairs of dense attention."""
        return self.pairs / (self.batch * self.heads * math.prod(self.size) ** 2)

    def flops(self, backward: bool) -> int:
        """Useful floating-point operations: two products forward, five more backward."""
        return 2 * self.pairs * self.head_dim * (7 if backward else 2)

    def ideal_bytes(self, element: int, backward: bool) -> int:
        """Each tensor read or written once: q, k, v, out; then those, the output's gradient, and three gradients."""
        tensor = self.batch * math.prod(self.size) * self.heads * self.head_dim * element
        return tensor * (4 + 8 * backward)


def _pairs(axis: AxisPattern, length: int) -> int:
    if not axis.causal:
        return length * axis.kernel_size
    total = 0
    for group in range(axis.dilation):
        n = (length - group + axis.dilation - 1) // axis.dilation
        query = torch.arange(n)
        total += int((query + 1 - axis.first_key(query, n)).sum())
    return total


def _windows(
    side: int, maps: tuple[tuple[int, int], ...], gates: tuple[str, ...], quick: bool = False
) -> list[Problem]:
    """Swin's stages: (side of the map, heads); shifted too where there is more than one window."""
    found = []
    for size, heads in maps:
        for shift in (0, side // 2) if size > side else (0,):
            pattern = LocalPattern(side, side, boundary="pad", shift=shift)
            batch = max(1, PIXELS * 3 // (size * size * heads))
            found.append(Problem("swin", pattern, (size, size), batch, heads, 32, True, gates, quick and shift > 0))
    return found


def _neighborhood() -> list[Problem]:
    found = []
    for side, batch in ((56, 32), (128, 8)):
        gates = ("flex", "backward", "dense") if side == 128 else ("flex", "backward")
        for kernel in (7, 13):
            for head_dim, heads in ((32, 4), (64, 2)):
                quick = head_dim == 32
                pattern = LocalPattern(kernel)
                found.append(
                    Problem("neighborhood", pattern, (side, side), batch, heads, head_dim, False, gates, quick)
                )
    return found


def _nat() -> list[Problem]:
    """Stages of NAT-T and DiNAT-T at 224, batch 64; the dilated layers are those of DiNAT."""
    stages = ((56, 2, (1, 8)), (28, 4, (1, 4)), (14, 8, (1, 2)), (7, 16, (1,)))
    return [Problem("nat", LocalPattern(7, dilation=dilation), (side, side), 64, heads, 32, True, quick=side == 56)
            for side, heads, dilations in stages for dilation in dilations]  # fmt: skip


def _halo() -> list[Problem]:
    def blocks(block: int, halo: int, query_stride: int = 1) -> LocalPattern:
        return LocalPattern(block + 2 * halo, block, boundary="pad", query_stride=query_stride)

    return [
        Problem("halo", blocks(8, 3), (64, 64), 32, 4, 16, quick=True),
        Problem("halo", blocks(8, 3), (32, 32), 64, 8, 16),
        Problem("halo", blocks(8, 2), (64, 64), 32, 4, 32),
        Problem("halo", blocks(8, 2), (16, 16), 128, 8, 32),
        Problem("halo", blocks(14, 2), (56, 56), 32, 4, 32),
    ]


def _natten() -> list[Problem]:
    """From the test and profiling lists of NATTEN, documented in its repository."""

    def one(
        *pattern: object, size: tuple[int, ...], heads: int = 4, d: int = 64, batch: int = 1, **more: object
    ) -> Problem:
        return Problem("natten", LocalPattern(*pattern, **more), size, batch, heads, d)  # type: ignore[arg-type]

    return [
        one(2048, 1, size=(2048,), heads=1, d=128),
        one(2048, 1, size=(32768,), heads=1, d=128),
        *(one(63, dilation=dilation, size=(32768,), d=64) for dilation in (4, 16)),
        *(one(8, dilation=dilation, size=(128, 128)) for dilation in (1, 4)),
        one(32, dilation=2, size=(64, 64)),
        one((24, 16), size=(44, 80)),
        one((24, 16), (8, 16), size=(44, 80)),
        one((32, 32), (22, 16), size=(44, 80)),
        one((3, 3, 3), (2, 1, 2), (2, 2, 2), size=(8, 8, 16), d=32),
    ]  # fmt: skip


def _sparse() -> list[Problem]:
    """Strides at which all queries of a tile share one window: the tiles' skipped share is what sparsity promises."""

    def one(kernel: int, stride: int, size: tuple[int, ...], heads: int, quick: bool = False) -> Problem:
        return Problem("sparse", LocalPattern(kernel, stride), size, 1, heads, 128, gates=("sparse",), quick=quick)

    return [
        one(2048, 256, (32768,), 8, True),
        one(2048, 2048, (32768,), 8),
        one(80, 16, (256, 256), 4),
        one(24, 8, (64, 64), 24),
        one(16, 16, (64, 64), 24),
    ]  # fmt: skip


def _video() -> list[Problem]:
    """Maps of video models; four of their heads, as time is proportional to them."""

    def one(kernel: tuple[int, ...], stride: tuple[int, ...] | int, size: tuple[int, ...], **more: object) -> Problem:
        return Problem("video", LocalPattern(kernel, stride, **more), size, 1, 4, 128)  # type: ignore[arg-type]

    return [
        one((18, 24, 24), (16, 8, 8), (30, 48, 80))._replace(gates=("sparse",)),
        one((18, 24, 24), 1, (30, 48, 80)),
        one((12, 32, 32), (8, 22, 16), (16, 44, 80)),
        one((3, 7, 7), 1, (8, 56, 56))._replace(batch=4, head_dim=32, quick=True),
        one((3, 7, 7), 1, (8, 56, 56), causal=(True, False, False))._replace(batch=4, head_dim=32),
    ]  # fmt: skip


TINY, BASE = (3, 6, 12, 24), (4, 8, 16, 32)
GATED = ("flex_even", "unfused", "backward")
LISTS: dict[str, list[Problem]] = {
    "neighborhood": _neighborhood(),
    "swin": [
        *_windows(7, tuple(zip((56, 28, 14, 7), TINY, strict=True)), GATED, quick=True),
        *_windows(7, tuple(zip((56, 28), BASE[:2], strict=True)), GATED),
    ],
    "swin_large": [
        *_windows(12, tuple(zip((96, 48, 24, 12), BASE, strict=True)), GATED),
        *_windows(8, ((256, 3), (64, 3)), GATED),
        *_windows(16, ((128, 3), (256, 4)), GATED),
        *_windows(24, ((192, 3),), GATED),
    ],
    "nat": _nat(),
    "halo": _halo(),
    "natten": _natten(),
    "sparse": _sparse(),
    "video": _video(),
}
SMOKE = [
    Problem("smoke", LocalPattern(3), (6, 5), 2, 2, 8, True),
    Problem("smoke", LocalPattern(2, 2, 2), (9, 8), 1, 2, 8, True),
    Problem("smoke", LocalPattern((2, 3, 3), causal=(True, False, False)), (3, 4, 5), 1, 1, 8),
    Problem("smoke", LocalPattern(3, 3, boundary="pad", shift=1), (6, 9), 2, 2, 8, True),
    Problem("smoke", LocalPattern(4, 2, boundary="pad"), (6, 4), 1, 2, 8),
]


def chosen(lists: list[str], quick: bool) -> list[Problem]:
    """The problems of some lists, or their quick subset."""
    return [problem for name in lists for problem in LISTS[name] if problem.quick or not quick]
