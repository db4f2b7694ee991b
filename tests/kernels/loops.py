# SPDX-License-Identifier: Apache-2.0
"""Local attention as loops over queries, written from the definitions; the oracle of the kernel tests."""

import itertools
import math

import torch
from torch import Tensor


def neighbourhood(i: int, length: int, kernel: int, stride: int, dilation: int, causal: bool) -> list[tuple[int, int]]:
    """(position of a key, its distance to the query in group coordinates) for the query at position i."""
    group, m = i % dilation, i // dilation
    members = [p for p in range(length) if p % dilation == group]
    if causal:
        leader = min(m // stride * stride + stride - 1, len(members) - 1)
        seen = range(max(leader - kernel + 1, 0), m + 1)
    else:
        leader = min(m // stride * stride + stride // 2, len(members) - 1)
        first = min(max(leader - kernel // 2, 0), len(members) - kernel)
        seen = range(first, first + kernel)
    return [(members[t], t - m) for t in seen]


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, kernel, stride, dilation, causal, bias=None, scale=None
) -> Tensor:  # type: ignore[no-untyped-def]
    """Query by query; kernel, stride, dilation and causal have one entry an axis."""
    batch, *size, heads, dim = q.shape
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    scale = dim**-0.5 if scale is None else scale
    for place in itertools.product(*(range(n) for n in size)):
        axes = [neighbourhood(*args) for args in zip(place, size, kernel, stride, dilation, causal, strict=True)]
        for b, h in itertools.product(range(batch), range(heads)):
            logits, values = [], []
            for keys in itertools.product(*axes):
                at = (b, *(position for position, _ in keys), h)
                logit = scale * torch.dot(q[(b, *place, h)], k[at])
                if bias is not None:
                    logit = logit + bias[(h, *(d + n - 1 for (_, d), n in zip(keys, kernel, strict=True)))]
                logits.append(logit)
                values.append(v[at])
            out[(b, *place, h)] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: int, shift: int, pad_k: Tensor, pad_v: Tensor) -> Tensor:
    """Query by query on the rolled canvas of a 2-D map, without bias."""
    batch, height, width, heads, dim = q.shape
    canvas = [math.ceil(n / window) * window for n in (height, width)]
    out = torch.zeros_like(q)

    def label(rolled: int, length: int) -> int:
        return 0 if rolled < length - window else 1 if rolled < length - shift else 2

    for b, y, x, h in itertools.product(range(batch), range(height), range(width), range(heads)):
        rolled = [(p - shift) % n for p, n in zip((y, x), canvas, strict=True)]
        corner = [r // window * window for r in rolled]
        logits, values = [], []
        for offset in itertools.product(range(window), repeat=2):
            other = [c + o for c, o in zip(corner, offset, strict=True)]
            labels = [(label(r, n), label(o, n)) for r, o, n in zip(rolled, other, canvas, strict=True)]
            if shift and any(mine != theirs for mine, theirs in labels):
                continue
            source = [(o + shift) % n for o, n in zip(other, canvas, strict=True)]
            inside = source[0] < height and source[1] < width
            key, value = (
                (k[b, source[0], source[1], h], v[b, source[0], source[1], h]) if inside else (pad_k[h], pad_v[h])
            )
            logits.append(torch.dot(q[b, y, x, h], key) * dim**-0.5)
            values.append(value)
        out[b, y, x, h] = torch.stack(logits).softmax(0) @ torch.stack(values)
    return out
