# SPDX-License-Identifier: Apache-2.0
"""What the Triton kernels of local attention share: which keys a tile needs, where they lie, and their logits.

Every map is taken as three axes (short ones lead with axes of length 1). Positions along an axis are counted as
members: inside the dilation group, or on the rolled canvas of windows. A tile's slots are its members in row-major
order; slots beyond a tile repeat its last member, so that every address is safe, and count for nothing.

P holds eight numbers an axis, named below; T is the tile that a program owns, BOX the tile of the other side that it
walks, in SUB pieces each.
"""

import triton
import triton.language as tl

KERNEL = tl.constexpr(0)  # fields of P
STRIDE = tl.constexpr(1)
DILATION = tl.constexpr(2)
CAUSAL = tl.constexpr(3)
PAD = tl.constexpr(4)  # boundary="pad"
BLOCK = tl.constexpr(5)  # queries of a block, boundary="pad"
HALO = tl.constexpr(6)
SHIFT = tl.constexpr(7)
FIELDS = 8

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
INF = tl.constexpr(float("inf"))


# --- geometry --------------------------------------------------------------------------------------------------------


@triton.jit
def _first_key(query, length, P: tl.constexpr, a: tl.constexpr):
    """First member of each query's window along axis `a`, in a group of `length` (`AxisPattern.first_key`)."""
    kernel: tl.constexpr = P[8 * a + KERNEL]
    stride: tl.constexpr = P[8 * a + STRIDE]
    if P[8 * a + PAD]:
        return query // P[8 * a + BLOCK] * stride - P[8 * a + HALO]
    elif P[8 * a + CAUSAL]:
        leader = tl.minimum(query // stride * stride + (stride - 1), length - 1)
        return tl.maximum(leader - (kernel - 1), 0)
    else:
        leader = tl.minimum(query // stride * stride + stride // 2, length - 1)
        return tl.maximum(tl.minimum(leader - kernel // 2, length - kernel), 0)


@triton.jit
def _first_query(key, length, P: tl.constexpr, a: tl.constexpr):
    """First query whose window holds a key: the inverse of the windows, which are monotone."""
    kernel: tl.constexpr = P[8 * a + KERNEL]
    stride: tl.constexpr = P[8 * a + STRIDE]
    if P[8 * a + PAD]:
        # Numerator kept positive: division rounds toward zero.
        block = (key + P[8 * a + HALO] - kernel + stride + kernel * stride) // stride - kernel
        return tl.maximum(block, 0) * P[8 * a + BLOCK]
    elif P[8 * a + CAUSAL]:
        return key
    else:
        group = (key - (kernel - 1) + kernel // 2 - stride // 2 + stride - 1) // stride
        return tl.where(key < kernel, 0, group * stride)


@triton.jit
def _last_query(key, length, P: tl.constexpr, a: tl.constexpr):
    """Last query whose window holds a key; `length` counts members, or blocks under boundary="pad"."""
    kernel: tl.constexpr = P[8 * a + KERNEL]
    stride: tl.constexpr = P[8 * a + STRIDE]
    if P[8 * a + PAD]:
        block = (key + P[8 * a + HALO] + kernel * stride) // stride - kernel
        return tl.minimum(block + 1, length) * P[8 * a + BLOCK] - 1
    elif P[8 * a + CAUSAL]:
        last = (key + kernel - stride) // stride * stride + stride - 1
        return tl.where(key + kernel >= length, length - 1, tl.minimum(last, length - 1))
    else:
        last = (key + kernel // 2 - stride // 2) // stride * stride + stride - 1
        return tl.where(key >= length - kernel, length - 1, tl.minimum(last, length - 1))


@triton.jit
def _query_tile(c, size, P: tl.constexpr, T: tl.constexpr, a: tl.constexpr):
    """Tile `c` of queries along an axis of `size` keys: its group, the group's length, first and stop member."""
    if P[8 * a + PAD]:
        block: tl.constexpr = P[8 * a + BLOCK]
        parts: tl.constexpr = (block + T[a] - 1) // T[a]
        at = c // parts
        start = at * block + (c - at * parts) * T[a]
        return (
            c * 0,
            (size + P[8 * a + STRIDE] - 1) // P[8 * a + STRIDE],
            start,
            tl.minimum(start + T[a], at * block + block),
        )
    else:
        dilation: tl.constexpr = P[8 * a + DILATION]
        count = ((size + dilation - 1) // dilation + T[a] - 1) // T[a]
        group = c // count
        length = (size - group + dilation - 1) // dilation
        start = tl.minimum((c - group * count) * T[a], length - 1)
        stop = tl.minimum((c - group * count) * T[a] + T[a], length)
        return group, length, start, tl.where((c - group * count) * T[a] < length, stop, start)


@triton.jit
def _key_tile(c, size, P: tl.constexpr, T: tl.constexpr, EXTEND: tl.constexpr, a: tl.constexpr):
    """Tile `c` of keys along an axis, as `_query_tile`; EXTEND: the halo around the map has tiles too."""
    if P[8 * a + PAD]:
        stride: tl.constexpr = P[8 * a + STRIDE]
        parts: tl.constexpr = (stride + T[a] - 1) // T[a]
        beyond: tl.constexpr = (P[8 * a + HALO] + stride - 1) // stride if EXTEND else 0
        at = c // parts
        start = (at - beyond) * stride + (c - at * parts) * T[a]
        return c * 0, (size + stride - 1) // stride, start, tl.minimum(start + T[a], (at - beyond) * stride + stride)
    else:
        return _query_tile(c, size, P, T, a)


@triton.jit
def triple(c, size, P: tl.constexpr, T: tl.constexpr, KEYS: tl.constexpr, EXTEND: tl.constexpr):
    """Groups, lengths, first and stop members of the tile at `c` along all axes."""
    if KEYS:
        g0, n0, s0, e0 = _key_tile(c[0], size[0], P, T, EXTEND, 0)
        g1, n1, s1, e1 = _key_tile(c[1], size[1], P, T, EXTEND, 1)
        g2, n2, s2, e2 = _key_tile(c[2], size[2], P, T, EXTEND, 2)
    else:
        g0, n0, s0, e0 = _query_tile(c[0], size[0], P, T, 0)
        g1, n1, s1, e1 = _query_tile(c[1], size[1], P, T, 1)
        g2, n2, s2, e2 = _query_tile(c[2], size[2], P, T, 2)
    return (g0, g1, g2), (n0, n1, n2), (s0, s1, s2), (e0, e1, e2)


@triton.jit
def _keys_of(start, stop, length, P: tl.constexpr, a: tl.constexpr):
    """First and stop key of the union of the windows of queries start..stop-1."""
    first = _first_key(start, length, P, a)
    if P[8 * a + CAUSAL]:
        return first, tl.maximum(stop, start + 1)
    else:
        return first, _first_key(tl.maximum(stop - 1, start), length, P, a) + P[8 * a + KERNEL]


@triton.jit
def queries_of(start, stop, length, P: tl.constexpr, a: tl.constexpr):
    """First and stop query of all whose window meets keys start..stop-1."""
    first = _first_query(start, length, P, a)
    return first, _last_query(tl.maximum(stop - 1, start), length, P, a) + 1


@triton.jit
def digit(slot, T: tl.constexpr, a: tl.constexpr):
    """Place of a slot along axis `a` of its tile."""
    if a == 2:
        return slot % T[2]
    elif a == 1:
        return slot // T[2] % T[1]
    else:
        return slot // (T[1] * T[2])


@triton.jit
def _member(slot, start, stop, T: tl.constexpr, a: tl.constexpr):
    return tl.minimum(start[a] + digit(slot, T, a), stop[a] - 1)


@triton.jit
def _canvas(size, P: tl.constexpr, a: tl.constexpr):
    """Length of the axis in whole windows."""
    return (size + P[8 * a + STRIDE] - 1) // P[8 * a + STRIDE] * P[8 * a + STRIDE]


@triton.jit
def place(slot, start, stop, group, size, strides, P: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr):
    """Offset in memory of each slot's row; whether the tile has the slot; whether the map has its position."""
    offset = slot * 0
    if WIDE:
        offset = offset.to(tl.int64)
    inside = slot < T[0] * T[1] * T[2]
    exists = slot >= 0
    for a in tl.static_range(3):
        inside = inside & (start[a] + digit(slot, T, a) < stop[a])
        position = _member(slot, start, stop, T, a)
        if P[8 * a + PAD]:
            if P[8 * a + SHIFT] > 0:
                canvas = _canvas(size[a], P, a)
                position += P[8 * a + SHIFT]
                position = tl.where(position >= canvas, position - canvas, position)
            exists = exists & (position >= 0) & (position < size[a])
            position = tl.minimum(tl.maximum(position, 0), size[a] - 1)
        else:
            position = group[a] + P[8 * a + DILATION] * position
        offset += position * strides[a + 1]
    return offset, inside, exists


@triton.jit
def unravel(item, counts):
    """Image of an item of work, and its tile's place along each axis."""
    rest = item // counts[2]
    above = rest // counts[1]
    return above // counts[0], (above % counts[0], rest % counts[1], item % counts[2])


@triton.jit
def box_counts(first, stop, BOX: tl.constexpr, SUB: tl.constexpr, BN: tl.constexpr):
    """Boxes along each axis that cover first..stop, and how many pieces that makes."""
    c0 = (tl.maximum(stop[0] - first[0], 0) + BOX[0] - 1) // BOX[0]
    c1 = (tl.maximum(stop[1] - first[1], 0) + BOX[1] - 1) // BOX[1]
    c2 = (tl.maximum(stop[2] - first[2], 0) + BOX[2] - 1) // BOX[2]
    if SUB > 1:  # one box holds them all; its last rows may be missing
        return (c0, c1, c2), (tl.maximum(stop[0] - first[0], 0) * (BOX[1] * BOX[2]) + BN - 1) // BN
    else:
        return (c0, c1, c2), c0 * c1 * c2


@triton.jit
def box_at(piece, first, counts, BOX: tl.constexpr, SUB: tl.constexpr, BN: tl.constexpr):
    """First members of the box of a piece, and the first of its slots."""
    if SUB > 1:
        return (first[0], first[1], first[2]), piece * BN
    else:
        rest = piece // counts[2]
        b0 = first[0] + rest // counts[1] * BOX[0]
        b1 = first[1] + rest % counts[1] * BOX[1]
        b2 = first[2] + piece % counts[2] * BOX[2]
        return (b0, b1, b2), piece * 0


@triton.jit
def origin(member, P: tl.constexpr, a: tl.constexpr):
    """What relative positions count from: the query, as a member among the keys."""
    if P[8 * a + PAD]:
        block: tl.constexpr = P[8 * a + BLOCK]
        return member + member // block * (P[8 * a + STRIDE] - block) - P[8 * a + HALO]
    else:
        return member


@triton.jit
def _relation(query, key, P: tl.constexpr, a: tl.constexpr):
    """Row of a relative-position table along axis `a`."""
    return key - origin(query, P, a) + (P[8 * a + KERNEL] - 1)


# --- logits ----------------------------------------------------------------------------------------------------------


@triton.jit
def _all_visible(qstart, qstop, kstart, kstop, length, P: tl.constexpr, FULL: tl.constexpr):
    """Whether every query of a box sees every key of another: scalar arithmetic that saves a mask."""
    visible = qstart[0] >= 0
    for a in tl.static_range(3):
        if FULL[a]:
            visible = visible & (_first_key(qstop[a] - 1, length[a], P, a) <= kstart[a])
            visible = visible & (kstop[a] <= _first_key(qstart[a], length[a], P, a) + P[8 * a + KERNEL])
            if P[8 * a + CAUSAL]:
                visible = visible & (kstop[a] - 1 <= qstart[a])
    return visible


@triton.jit
def _visible(seen, qslot, kslot, qstart, qstop, kstart, kstop, length, P: tl.constexpr, QT: tl.constexpr,
             KT: tl.constexpr, FULL: tl.constexpr):  # fmt: skip
    """`seen`, and each key inside its query's window, along the axes where that isn't so for all."""
    for a in tl.static_range(3):
        if FULL[a]:
            query = _member(qslot, qstart, qstop, QT, a)
            key = _member(kslot, kstart, kstop, KT, a)
            into = key - _first_key(query, length[a], P, a)
            seen = seen & (into.to(tl.uint32, bitcast=True) < P[8 * a + KERNEL])
            if P[8 * a + CAUSAL]:
                seen = seen & (key <= query)
    return seen


@triton.jit
def _bias_tile(bias, mask, qslot, kslot, qstart, qstop, kstart, kstop, P: tl.constexpr, QT: tl.constexpr,
               KT: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Entries of one head's bias table for a tile of pairs, in base 2; pairs outside the mask get 0."""
    width: tl.constexpr = 2 * P[8 * 2 + KERNEL] - 1
    plane: tl.constexpr = width * (2 * P[8 * 1 + KERNEL] - 1)
    entry = _relation(_member(qslot, qstart, qstop, QT, 0), _member(kslot, kstart, kstop, KT, 0), P, 0) * plane
    entry += _relation(_member(qslot, qstart, qstop, QT, 1), _member(kslot, kstart, kstop, KT, 1), P, 1) * width
    entry += _relation(_member(qslot, qstart, qstop, QT, 2), _member(kslot, kstart, kstop, KT, 2), P, 2)
    if MASKED:
        return tl.load(bias + entry, mask=mask, other=0.0).to(tl.float32) * LOG2E
    else:
        return tl.load(bias + entry).to(tl.float32) * LOG2E


@triton.jit
def table_start(P: tl.constexpr, a: tl.constexpr):
    """Where axis `a` begins in a row of relative logits."""
    if a == 0:
        return 0
    elif a == 1:
        return 2 * P[KERNEL] - 1
    else:
        return 2 * P[KERNEL] + 2 * P[8 + KERNEL] - 2


@triton.jit
def _relative_tile(rel, rows, mask, qslot, kslot, qstart, qstop, kstart, kstop, P: tl.constexpr, QT: tl.constexpr,
                   KT: tl.constexpr):  # fmt: skip
    """Decomposed relative logits of a tile of pairs, in base 2: one number an axis from each query's row."""
    total = mask.to(tl.float32) * 0.0
    for a in tl.static_range(3):
        query = _member(qslot, qstart, qstop, QT, a)
        key = _member(kslot, kstart, kstop, KT, a)
        entry = rows + table_start(P, a) + _relation(query, key, P, a)
        total += tl.load(rel + entry, mask=mask, other=0.0).to(tl.float32)
    return total * LOG2E


@triton.jit
def _seam(slot, start, stop, size, P: tl.constexpr, T: tl.constexpr):
    """On which side of the roll's seam a slot is; pairs of one window on different sides don't see each other."""
    side = slot * 0
    for a in tl.static_range(3):
        if P[8 * a + SHIFT] > 0:
            seam = _canvas(size[a], P, a) - P[8 * a + SHIFT]
            side = side * 2 + (_member(slot, start, stop, T, a) >= seam).to(tl.int32)
    return side


@triton.jit
def _crosses_seam(qstop, kstop, size, P: tl.constexpr):
    """Whether the window that queries and keys belong to meets the seam along any axis."""
    crosses = qstop[0] < 0
    for a in tl.static_range(3):
        if P[8 * a + SHIFT] > 0:
            crosses = crosses | (tl.maximum(qstop[a], kstop[a]) > _canvas(size[a], P, a) - P[8 * a + SHIFT])
    return crosses


@triton.jit
def logits(s, scale, bias, bias_tile, rel, rel_rows, key_ok, qslot, kslot, qstart, qstop, kstart, kstop, length, size,
            P: tl.constexpr, QT: tl.constexpr, KT: tl.constexpr, FULL: tl.constexpr, ANY_FULL: tl.constexpr,
            EXACT: tl.constexpr, DYNAMIC: tl.constexpr, SEAMS: tl.constexpr, BIAS: tl.constexpr,
            REL: tl.constexpr):  # fmt: skip
    """Logits of a tile of pairs in base 2, minus infinity where a query does not see a key.

    qslot and kslot are the slots, one of them a column and the other a row. BIAS: 0 none, 1 from the table, 2 from
    `bias_tile`.
    """
    s = s * scale
    if DYNAMIC:
        box_stop = (tl.minimum(kstart[0] + KT[0], kstop[0]), tl.minimum(kstart[1] + KT[1], kstop[1]),
                    tl.minimum(kstart[2] + KT[2], kstop[2]))  # fmt: skip
        tile_stop = (tl.minimum(qstart[0] + QT[0], qstop[0]), tl.minimum(qstart[1] + QT[1], qstop[1]),
                     tl.minimum(qstart[2] + QT[2], qstop[2]))  # fmt: skip
        whole = _all_visible(qstart, tile_stop, kstart, box_stop, length, P, FULL)
        if whole:
            if BIAS:
                s += _bias_tile(bias, key_ok, qslot, kslot, qstart, qstop, kstart, kstop, P, QT, KT, False)
            if not EXACT:
                s = tl.where(key_ok, s, -INF)
        else:
            seen = _visible(key_ok, qslot, kslot, qstart, qstop, kstart, kstop, length, P, QT, KT, FULL)
            if BIAS:
                s += _bias_tile(bias, seen, qslot, kslot, qstart, qstop, kstart, kstop, P, QT, KT, True)
            s = tl.where(seen, s, -INF)
    else:
        seen = _visible(key_ok, qslot, kslot, qstart, qstop, kstart, kstop, length, P, QT, KT, FULL)
        if REL:
            s += _relative_tile(
                rel, rel_rows, seen & (qslot >= 0), qslot, kslot, qstart, qstop, kstart, kstop, P, QT, KT
            )
        if BIAS == 1:
            s += _bias_tile(bias, seen, qslot, kslot, qstart, qstop, kstart, kstop, P, QT, KT, ANY_FULL)
        if BIAS == 2:
            s += bias_tile
        if ANY_FULL or not EXACT:
            s = tl.where(seen, s, -INF)
    if SEAMS:  # noqa: SIM102  known to the compiler, the other is not
        if _crosses_seam(qstop, kstop, size, P):
            same = _seam(qslot, qstart, qstop, size, P, QT) == _seam(kslot, kstart, kstop, size, P, KT)
            s = tl.where(same, s, -INF)
    return s


@triton.jit
def softmax_step(s, v, acc, top, total, PRECISION: tl.constexpr):
    """One step of the online softmax: the running maximum, sum and weighted values."""
    new = tl.maximum(top, tl.max(s, 1))
    base = tl.where(new == -INF, 0.0, new)  # a row that has seen nothing yet
    p = tl.exp2(s - base[:, None])
    fade = tl.exp2(top - base)
    total = total * fade + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * fade[:, None], input_precision=PRECISION)
    return acc, new, total


@triton.jit
def load_keys(source, offset, exists, pad, column, D: tl.constexpr, HOLES: tl.constexpr, FILL: tl.constexpr):
    """Rows of K or V, (BN, BD). HOLES: some may lie outside the map; FILL: these hold `pad`, else zero."""
    BD: tl.constexpr = column.shape[0]
    at = source + offset[:, None] + column[None, :]
    if HOLES:
        mask = exists[:, None]
        if BD != D:
            mask = mask & (column < D)[None, :]
        rows = tl.load(at, mask=mask, other=0.0)
        if FILL:
            row = tl.load(pad + column, mask=column < D, other=0.0).to(rows.dtype)
            rows = tl.where(exists[:, None], rows, row[None, :])
        return rows
    elif BD != D:
        return tl.load(at, mask=(column < D)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def load_rows(source, offset, column, D: tl.constexpr):
    """Rows (BM, BD) at safe offsets."""
    BD: tl.constexpr = column.shape[0]
    if BD != D:
        return tl.load(source + offset[:, None] + column[None, :], mask=(column < D)[None, :], other=0.0)
    else:
        return tl.load(source + offset[:, None] + column[None, :])


@triton.jit
def queries(item, counts, k_size, P: tl.constexpr, T: tl.constexpr):
    """The tile of queries of an item of work, and first and stop key of the union of its windows."""
    image, c = unravel(item, counts)
    group, length, start, stop = triple(c, k_size, P, T, False, False)
    first0, last0 = _keys_of(start[0], stop[0], length[0], P, 0)
    first1, last1 = _keys_of(start[1], stop[1], length[1], P, 1)
    first2, last2 = _keys_of(start[2], stop[2], length[2], P, 2)
    return image, group, length, start, stop, (first0, first1, first2), (last0, last1, last2)


@triton.jit
def pixel_index(slot, start, stop, group, size, P: tl.constexpr, T: tl.constexpr, WIDE: tl.constexpr):
    """Index of each slot's pixel in a flattened map."""
    pixel, _inside, _exists = place(slot, start, stop, group, size, (0, size[1] * size[2], size[2], 1), P, T, WIDE)
    return pixel


@triton.jit
def uniform_bias(bias, qslot, kslot, P: tl.constexpr, T: tl.constexpr, BOX: tl.constexpr):
    """The bias of a whole window's pairs, which is the same in every window."""
    first = (-P[HALO], -P[8 + HALO], -P[16 + HALO])
    stop = (BOX[0] - P[HALO], BOX[1] - P[8 + HALO], BOX[2] - P[16 + HALO])
    zero = (0, 0, 0)
    return _bias_tile(bias, qslot >= 0, qslot, kslot, zero, T, first, stop, P, T, BOX, False)
