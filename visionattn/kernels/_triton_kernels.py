# SPDX-License-Identifier: Apache-2.0
"""Triton kernels of local attention: a tile of queries against the union of its windows, streamed from K and V.

One pass with an online softmax; no matrix of logits and no copy of windows in memory. `_triton_geometry` has the names.
"""

import triton
import triton.language as tl

from visionattn.kernels._triton_geometry import (
    INF,
    KERNEL,
    LN2,
    LOG2E,
    box_at,
    box_counts,
    digit,
    load_keys,
    load_rows,
    logits,
    origin,
    pixel_index,
    place,
    queries,
    queries_of,
    softmax_step,
    table_start,
    triple,
    uniform_bias,
    unravel,
)

# --- forward ---------------------------------------------------------------------------------------------------------


@triton.jit
def _forward_item(item, head, bias_tile, q, k, v, out, lse, bias, rel, extra_k, extra_v, pad_k, pad_v,
                  q_strides, k_strides, v_strides, q_size, k_size, counts, extra, scale,
                  P: tl.constexpr, T: tl.constexpr, BOX: tl.constexpr, SUB: tl.constexpr, FULL: tl.constexpr,
                  ANY_FULL: tl.constexpr, EXACT: tl.constexpr, DYNAMIC: tl.constexpr, SINGLE: tl.constexpr,
                  SEAMS: tl.constexpr, BIAS: tl.constexpr, REL: tl.constexpr, EXTRA: tl.constexpr, HOLES: tl.constexpr,
                  FILL: tl.constexpr, LSE: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
                  D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
                  BDV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One tile of queries of one head."""
    image, group, length, start, stop, first, last = queries(item, counts, k_size, P, T)
    if WIDE:
        image = image.to(tl.int64)
    kv_head = head // GROUP
    slot, piece_slot = tl.arange(0, BM), tl.arange(0, BN)
    column, v_column = tl.arange(0, BD), tl.arange(0, BDV)
    q += image.to(tl.int64) * q_strides[0] + head * q_strides[4]
    k += image.to(tl.int64) * k_strides[0] + kv_head * k_strides[4]
    pad_k += kv_head * D
    v += image.to(tl.int64) * v_strides[0] + kv_head * v_strides[4]
    pad_v += kv_head * DV
    offset, inside, exists = place(slot, start, stop, group, q_size, q_strides, P, T, WIDE)
    rows = image * (q_size[0] * q_size[1] * q_size[2]) + pixel_index(slot, start, stop, group, q_size, P, T, WIDE)
    rows = rows * HEADS + head
    rel_rows = rows[:, None] * (table_start(P, 2) + 2 * P[16 + KERNEL] - 1)
    q_tile = load_rows(q, offset, column, D)
    acc = tl.zeros((BM, BDV), tl.float32)
    top = tl.full((BM,), -INF, tl.float32)
    total = tl.zeros((BM,), tl.float32)
    boxes, pieces = box_counts(first, last, BOX, SUB, BN)
    if SINGLE:
        pieces = 1
    for piece in range(0, pieces):
        box, at = box_at(piece, first, boxes, BOX, SUB, BN)
        kslot = at + piece_slot
        k_offset, key_ok, key_exists = place(kslot, box, last, group, k_size, k_strides, P, BOX, WIDE)
        v_offset, _in, _is = place(kslot, box, last, group, k_size, v_strides, P, BOX, WIDE)
        k_tile = load_keys(k, k_offset, key_exists, pad_k, column, D, HOLES, FILL)
        v_tile = load_keys(v, v_offset, key_exists, pad_v, v_column, DV, HOLES, FILL)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        s = logits(s, scale, bias, bias_tile, rel, rel_rows, key_ok[None, :], slot[:, None], kslot[None,
                   :], start, stop, box, last, length, k_size, P, T, BOX, FULL, ANY_FULL, EXACT, DYNAMIC,
                   SEAMS, BIAS, REL)  # fmt: skip
        acc, top, total = softmax_step(s, v_tile, acc, top, total, PRECISION)
    if EXTRA:
        for at in range(0, extra, BN):
            key = at + piece_slot
            row = (image * extra + tl.minimum(key, extra - 1)) * (HEADS // GROUP) + kv_head
            k_tile = load_rows(extra_k, row * D, column, D)
            v_tile = load_rows(extra_v, row * DV, v_column, DV)
            s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
            s = tl.where((key < extra)[None, :], s, -INF)
            acc, top, total = softmax_step(s, v_tile, acc, top, total, PRECISION)
    stored = inside & exists
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * DV + v_column[None, :], result, mask=stored[:, None] & (v_column < DV)[None, :])
    if LSE:
        tl.store(lse + rows, (top + tl.log2(total)) * LN2, mask=stored)


@triton.jit
def forward(q, k, v, out, lse, bias, rel, extra_k, extra_v, pad_k, pad_v, q_strides, k_strides, v_strides, q_size,
            k_size, counts, items, share, extra, scale,
            P: tl.constexpr, T: tl.constexpr, BOX: tl.constexpr, SUB: tl.constexpr, FULL: tl.constexpr,
            ANY_FULL: tl.constexpr, EXACT: tl.constexpr, DYNAMIC: tl.constexpr, SINGLE: tl.constexpr,
            UNIFORM: tl.constexpr, SEAMS: tl.constexpr, BIAS: tl.constexpr, REL: tl.constexpr,
            EXTRA: tl.constexpr, HOLES: tl.constexpr, FILL: tl.constexpr, LSE: tl.constexpr, WIDE: tl.constexpr,
            HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr,
            BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Output and log-sum-exp. A program takes `share` tiles of queries of one head, one after the other.

    UNIFORM: a tile is a window and all windows have the same bias, which is loaded once for all of a program's.
    """
    head = tl.program_id(0) % HEADS
    begin = tl.program_id(0) // HEADS * share
    bias_tile = 0.0
    if BIAS:
        bias += head * ((table_start(P, 1)) * (2 * P[8 + KERNEL] - 1) * (2 * P[16 + KERNEL] - 1))
    if BIAS and UNIFORM:
        bias_tile = uniform_bias(bias, tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :], P, T, BOX)
    for item in range(begin, tl.minimum(begin + share, items)):
        _forward_item(item, head, bias_tile, q, k, v, out, lse, bias, rel, extra_k, extra_v, pad_k, pad_v,
                      q_strides, k_strides, v_strides, q_size, k_size, counts, extra, scale, P, T, BOX,
                      SUB, FULL, ANY_FULL, EXACT, DYNAMIC, SINGLE, SEAMS, 2 if BIAS and UNIFORM else BIAS,
                      REL, EXTRA, HOLES, FILL, LSE, WIDE, HEADS, GROUP, D, DV, BM, BN, BD, BDV, PRECISION)  # fmt: skip


# --- backward --------------------------------------------------------------------------------------------------------


@triton.jit
def _fold_bias(scratch, partial, columns, shift, boxes, extent, P: tl.constexpr, T: tl.constexpr, BOX: tl.constexpr,
               SPLIT: tl.constexpr, ENTRIES: tl.constexpr):  # fmt: skip
    """Add a tile's gradients of the logits, kept row by row in `scratch`, to the entries of a bias table.

    Entry and query give the key, so that each entry gathers its own: no atomics. `shift`: relation of a box's first key
    to the tile's first query, along each axis; `extent`: its keys.
    """
    width: tl.constexpr = 2 * P[16 + KERNEL] - 1
    plane: tl.constexpr = width * (2 * P[8 + KERNEL] - 1)
    table: tl.constexpr = plane * (2 * P[KERNEL] - 1)
    queries: tl.constexpr = T[0] * T[1] * T[2]
    for start in range(0, table, ENTRIES):
        entry = start + tl.arange(0, ENTRIES)
        d0, d1, d2 = (
            entry // plane - shift[0],
            entry // width % (2 * P[8 + KERNEL] - 1) - shift[1],
            entry % width - shift[2],
        )
        total = tl.zeros((ENTRIES,), tl.float32)
        for first in range(0, queries, 8):
            slot = first + tl.arange(0, 8)[:, None]
            j0, j1, j2 = (
                d0[None, :] + digit(slot, T, 0),
                d1[None, :] + digit(slot, T, 1),
                d2[None, :] + digit(slot, T, 2),
            )
            ok = (slot < queries) & (entry < table)[None, :] & (j0 >= 0) & (j1 >= 0) & (j2 >= 0)
            ok = ok & (j0 < extent[0]) & (j1 < extent[1]) & (j2 < extent[2])
            if SPLIT:
                at = (j0 * BOX[1] + j1) * BOX[2] + j2
            else:
                box = (j0 // BOX[0] * boxes[1] + j1 // BOX[1]) * boxes[2] + j2 // BOX[2]
                at = ((box * BOX[0] + j0 % BOX[0]) * BOX[1] + j1 % BOX[1]) * BOX[2] + j2 % BOX[2]
            total += tl.sum(tl.load(scratch + slot * columns + at, mask=ok, other=0.0), 0)
        known = tl.load(partial + entry, mask=entry < table, other=0.0)
        tl.store(partial + entry, known + total, mask=entry < table)


@triton.jit
def _relative_gradient(ds, key, boxes: tl.constexpr, PRECISION: tl.constexpr):
    """Sum over the keys with each place (0..boxes-1) along an axis, as a product with their one-hot matrix."""
    one_hot = (key[:, None] == tl.arange(0, boxes)[None, :]).to(tl.float32).to(ds.dtype)
    return tl.dot(ds, one_hot, input_precision=PRECISION)


@triton.jit
def _store_relative(target, gradient, slot, shift, start, stop, stored, P: tl.constexpr, T: tl.constexpr,
                    a: tl.constexpr):  # fmt: skip
    """Write the gradients of an axis' relative logits: key place x of a window is entry x - query place + shift."""
    place = tl.arange(0, gradient.shape[1])[None, :]
    entry = table_start(P, a) + place - digit(slot, T, a)[:, None] + shift
    mask = stored[:, None] & (place < P[8 * a + KERNEL])
    tl.store(target + entry, gradient, mask=mask)


@triton.jit
def _backward_query_item(item, head, bias_tile, ds_total, scratch, partial, q, k, v, out, grad_out, lse, grad_lse,
                         delta, dq, dk, dv, d_rel, bias, rel, extra_k, extra_v, pad_k, pad_v, q_strides, k_strides,
                         v_strides, q_size, k_size, counts, extra, columns, scale, scale_out,
                         P: tl.constexpr, T: tl.constexpr, BOX: tl.constexpr, SUB: tl.constexpr,
                         FULL: tl.constexpr, ANY_FULL: tl.constexpr, EXACT: tl.constexpr, DYNAMIC: tl.constexpr,
                         SINGLE: tl.constexpr, UNIFORM: tl.constexpr, FUSED: tl.constexpr,
                         SEAMS: tl.constexpr, BIAS: tl.constexpr, BIAS_GRAD: tl.constexpr, REL: tl.constexpr,
                         EXTRA: tl.constexpr, HOLES: tl.constexpr, FILL: tl.constexpr, LSE: tl.constexpr,
                         WIDE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
                         DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
                         BDV: tl.constexpr, X0: tl.constexpr, X1: tl.constexpr, X2: tl.constexpr,
                         ENTRIES: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """One tile of queries of one head; returns `ds_total` with the tile's gradients of the logits added, if UNIFORM."""
    image, group, length, start, stop, first, last = queries(item, counts, k_size, P, T)
    if WIDE:
        image = image.to(tl.int64)
    kv_head = head // GROUP
    slot, piece_slot = tl.arange(0, BM), tl.arange(0, BN)
    column, v_column = tl.arange(0, BD), tl.arange(0, BDV)
    q += image.to(tl.int64) * q_strides[0] + head * q_strides[4]
    k += image.to(tl.int64) * k_strides[0] + kv_head * k_strides[4]
    pad_k += kv_head * D
    v += image.to(tl.int64) * v_strides[0] + kv_head * v_strides[4]
    pad_v += kv_head * DV
    offset, inside, exists = place(slot, start, stop, group, q_size, q_strides, P, T, WIDE)
    stored = inside & exists
    rows = image * (q_size[0] * q_size[1] * q_size[2]) + pixel_index(slot, start, stop, group, q_size, P, T, WIDE)
    rows = rows * HEADS + head
    rel_rows = rows[:, None] * (table_start(P, 2) + 2 * P[16 + KERNEL] - 1)
    q_tile = load_rows(q, offset, column, D)
    do_tile = load_rows(grad_out, rows * DV, v_column, DV)
    o_tile = load_rows(out, rows * DV, v_column, DV)
    row_delta = tl.sum(o_tile.to(tl.float32) * do_tile.to(tl.float32), 1)
    if LSE:
        row_delta -= tl.load(grad_lse + rows)
    # Rows that are not there get weights of zero.
    row_lse = tl.where(stored, tl.load(lse + rows) * LOG2E, INF)
    if not FUSED:
        tl.store(delta + rows, row_delta, mask=stored)
    acc = tl.zeros((BM, BD), tl.float32)
    rel0 = tl.zeros((BM, X0), tl.float32)
    rel1 = tl.zeros((BM, X1), tl.float32)
    rel2 = tl.zeros((BM, X2), tl.float32)
    boxes, pieces = box_counts(first, last, BOX, SUB, BN)
    if SINGLE:
        pieces = 1
    for piece in range(0, pieces):
        box, at = box_at(piece, first, boxes, BOX, SUB, BN)
        kslot = at + piece_slot
        k_offset, key_ok, key_exists = place(kslot, box, last, group, k_size, k_strides, P, BOX, WIDE)
        v_offset, _in, _is = place(kslot, box, last, group, k_size, v_strides, P, BOX, WIDE)
        k_tile = load_keys(k, k_offset, key_exists, pad_k, column, D, HOLES, FILL)
        v_tile = load_keys(v, v_offset, key_exists, pad_v, v_column, DV, HOLES, FILL)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)
        s = logits(s, scale, bias, bias_tile, rel, rel_rows, key_ok[None, :], slot[:, None], kslot[None,
                   :], start, stop, box, last, length, k_size, P, T, BOX, FULL, ANY_FULL, EXACT, DYNAMIC,
                   SEAMS, BIAS, REL)  # fmt: skip
        p = tl.exp2(s - row_lse[:, None])
        dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
        ds = p * (dp - row_delta[:, None])
        half = ds.to(q_tile.dtype)
        acc = tl.dot(half, k_tile, acc, input_precision=PRECISION)
        if BIAS_GRAD:
            if UNIFORM:
                ds_total += ds
            else:
                place_in_row = piece * (BN if SUB > 1 else BOX[0] * BOX[1] * BOX[2]) + piece_slot[None, :]
                held = (kslot < BOX[0] * BOX[1] * BOX[2])[None, :]
                tl.store(scratch + slot[:, None] * columns + place_in_row, ds, mask=held)
        if REL:
            rel0 += _relative_gradient(half, digit(kslot, BOX, 0) + box[0] - first[0], X0, PRECISION)
            rel1 += _relative_gradient(half, digit(kslot, BOX, 1) + box[1] - first[1], X1, PRECISION)
            rel2 += _relative_gradient(half, digit(kslot, BOX, 2) + box[2] - first[2], X2, PRECISION)
        if FUSED:
            key_row = image * (k_size[0] * k_size[1] * k_size[2]) + pixel_index(
                kslot, box, last, group, k_size, P, BOX, WIDE
            )
            key_row = key_row * (HEADS // GROUP) + kv_head
            written = (key_ok & key_exists)[:, None]
            dk_tile = tl.dot(tl.trans(half), q_tile, input_precision=PRECISION) * scale_out
            dv_tile = tl.dot(tl.trans(p.to(do_tile.dtype)), do_tile, input_precision=PRECISION)
            tl.store(dk + key_row[:, None] * D + column[None, :], dk_tile.to(dk.dtype.element_ty),
                     mask=written & (column < D)[None, :])  # fmt: skip
            tl.store(dv + key_row[:, None] * DV + v_column[None, :], dv_tile.to(dv.dtype.element_ty),
                     mask=written & (v_column < DV)[None, :])  # fmt: skip
    if EXTRA:
        for at in range(0, extra, BN):
            key = at + piece_slot
            row = (image * extra + tl.minimum(key, extra - 1)) * (HEADS // GROUP) + kv_head
            k_tile = load_rows(extra_k, row * D, column, D)
            v_tile = load_rows(extra_v, row * DV, v_column, DV)
            s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * scale
            p = tl.where((key < extra)[None, :], tl.exp2(s - row_lse[:, None]), 0.0)
            dp = tl.dot(do_tile, tl.trans(v_tile), input_precision=PRECISION)
            ds = p * (dp - row_delta[:, None])
            acc = tl.dot(ds.to(q_tile.dtype), k_tile, acc, input_precision=PRECISION)
    tl.store(dq + rows[:, None] * D + column[None, :], (acc * scale_out).to(dq.dtype.element_ty),
             mask=stored[:, None] & (column < D)[None, :])  # fmt: skip
    shift0 = first[0] - origin(start[0], P, 0) + (P[KERNEL] - 1)
    shift1 = first[1] - origin(start[1], P, 1) + (P[8 + KERNEL] - 1)
    shift2 = first[2] - origin(start[2], P, 2) + (P[16 + KERNEL] - 1)
    if REL:
        _store_relative(d_rel + rel_rows, rel0, slot, shift0, start, stop, stored, P, T, 0)
        _store_relative(d_rel + rel_rows, rel1, slot, shift1, start, stop, stored, P, T, 1)
        _store_relative(d_rel + rel_rows, rel2, slot, shift2, start, stop, stored, P, T, 2)
    if BIAS_GRAD and not UNIFORM:
        tl.debug_barrier()  # the fold reads what other threads wrote
        extent = (last[0] - first[0], last[1] - first[1], last[2] - first[2])
        _fold_bias(scratch, partial, columns, (shift0, shift1, shift2), boxes, extent, P, T, BOX, SUB > 1, ENTRIES)
        tl.debug_barrier()  # and the next tile writes over it
    return ds_total


@triton.jit
def backward_query(q, k, v, out, grad_out, lse, grad_lse, delta, dq, dk, dv, d_rel, scratch, partial, bias, rel,
                   extra_k, extra_v, pad_k, pad_v, q_strides, k_strides, v_strides, q_size, k_size, counts, items,
                   share, extra, columns, scale, scale_out,
                   P: tl.constexpr, T: tl.constexpr, BOX: tl.constexpr, SUB: tl.constexpr,
                   FULL: tl.constexpr, ANY_FULL: tl.constexpr, EXACT: tl.constexpr, DYNAMIC: tl.constexpr,
                   SINGLE: tl.constexpr, UNIFORM: tl.constexpr, FUSED: tl.constexpr, SEAMS: tl.constexpr,
                   BIAS: tl.constexpr, BIAS_GRAD: tl.constexpr, REL: tl.constexpr, EXTRA: tl.constexpr,
                   HOLES: tl.constexpr, FILL: tl.constexpr, LSE: tl.constexpr, WIDE: tl.constexpr,
                   HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr,
                   BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, X0: tl.constexpr,
                   X1: tl.constexpr, X2: tl.constexpr, ENTRIES: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of the queries, of the bias table and of relative logits; FUSED: of keys and values too.

    A program takes `share` tiles of queries of one head. It has `columns` numbers of `scratch` for each of its rows,
    and a bias table of its own in `partial`. FUSED: a tile is a window, whose keys no other query sees.
    """
    head = tl.program_id(0) % HEADS
    begin = tl.program_id(0) // HEADS * share
    bias_tile = 0.0
    table: tl.constexpr = (2 * P[KERNEL] - 1) * (2 * P[8 + KERNEL] - 1) * (2 * P[16 + KERNEL] - 1)
    if BIAS:
        bias += head * table
    if BIAS and UNIFORM:
        bias_tile = uniform_bias(bias, tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :], P, T, BOX)
    if BIAS_GRAD:
        scratch += tl.program_id(0).to(tl.int64) * columns * BM
        partial += tl.program_id(0).to(tl.int64) * table
        ds_total = tl.zeros((BM, BN), tl.float32) if UNIFORM else 0.0
    else:
        ds_total = 0.0
    for item in range(begin, tl.minimum(begin + share, items)):
        ds_total = _backward_query_item(
            item, head, bias_tile, ds_total, scratch, partial, q, k, v, out, grad_out, lse, grad_lse, delta, dq, dk, dv,
            d_rel, bias, rel, extra_k, extra_v, pad_k, pad_v, q_strides, k_strides, v_strides, q_size, k_size, counts,
            extra, columns, scale, scale_out, P, T, BOX, SUB, FULL, ANY_FULL, EXACT, DYNAMIC, SINGLE, UNIFORM, FUSED,
            SEAMS, 2 if BIAS and UNIFORM else BIAS, BIAS_GRAD, REL, EXTRA, HOLES, FILL, LSE, WIDE, HEADS, GROUP, D, DV,
            BM, BN, BD, BDV, X0, X1, X2, ENTRIES, PRECISION)  # fmt: skip
    if BIAS_GRAD and UNIFORM:
        slot, key = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
        tl.store(scratch + slot * columns + key, ds_total, mask=key < BOX[0] * BOX[1] * BOX[2])
        tl.debug_barrier()
        shift = (P[KERNEL] - 1, P[8 + KERNEL] - 1, P[16 + KERNEL] - 1)
        _fold_bias(scratch, partial, columns, shift, (1, 1, 1), BOX, P, T, BOX, True, ENTRIES)


@triton.jit
def backward_key(q, k, v, grad_out, lse, delta, dk, dv, d_pad_k, d_pad_v, bias, rel, pad_k, pad_v, q_strides, k_strides,
                 v_strides, q_size, k_size, counts, scale, scale_out,
                 P: tl.constexpr, T: tl.constexpr, BOX: tl.constexpr, FULL: tl.constexpr, ANY_FULL: tl.constexpr,
                 DYNAMIC: tl.constexpr, SEAMS: tl.constexpr, BIAS: tl.constexpr, REL: tl.constexpr, HOLES: tl.constexpr,
                 FILL: tl.constexpr, EXTEND: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr,
                 D: tl.constexpr, DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
                 BDV: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of a tile of BN keys and values, which gathers the queries that see it: no atomics.

    EXTEND: also one row a program of `d_pad_k` and `d_pad_v`, the gradients of keys outside the map.
    """
    kv_heads: tl.constexpr = HEADS // GROUP
    kv_head = tl.program_id(0) % kv_heads
    image, c = unravel(tl.program_id(0) // kv_heads, counts)
    if WIDE:
        image = image.to(tl.int64)
    group, length, start, stop = triple(c, k_size, P, T, True, EXTEND)
    first0, last0 = queries_of(start[0], stop[0], length[0], P, 0)
    first1, last1 = queries_of(start[1], stop[1], length[1], P, 1)
    first2, last2 = queries_of(start[2], stop[2], length[2], P, 2)
    first, last = (first0, first1, first2), (last0, last1, last2)
    slot, q_slot = tl.arange(0, BN), tl.arange(0, BM)
    column, v_column = tl.arange(0, BD), tl.arange(0, BDV)
    k += image.to(tl.int64) * k_strides[0] + kv_head * k_strides[4]
    pad_k += kv_head * D
    v += image.to(tl.int64) * v_strides[0] + kv_head * v_strides[4]
    pad_v += kv_head * DV
    q += image.to(tl.int64) * q_strides[0]
    k_offset, inside, exists = place(slot, start, stop, group, k_size, k_strides, P, T, WIDE)
    v_offset, _in, _is = place(slot, start, stop, group, k_size, v_strides, P, T, WIDE)
    k_tile = load_keys(k, k_offset, exists, pad_k, column, D, HOLES, FILL)
    v_tile = load_keys(v, v_offset, exists, pad_v, v_column, DV, HOLES, FILL)
    dk_tile = tl.zeros((BN, BD), tl.float32)
    dv_tile = tl.zeros((BN, BDV), tl.float32)
    boxes, pieces = box_counts(first, last, BOX, 1, BM)
    table: tl.constexpr = (2 * P[KERNEL] - 1) * (2 * P[8 + KERNEL] - 1) * (2 * P[16 + KERNEL] - 1)
    for step in range(0, pieces * GROUP):
        head = kv_head * GROUP + step // tl.maximum(pieces, 1)
        box, _first_slot = box_at(step % tl.maximum(pieces, 1), first, boxes, BOX, 1, BM)
        offset, q_inside, q_exists = place(q_slot, box, last, group, q_size, q_strides, P, BOX, WIDE)
        rows = image * (q_size[0] * q_size[1] * q_size[2]) + pixel_index(q_slot, box, last, group, q_size, P, BOX, WIDE)
        rows = rows * HEADS + head
        rel_rows = rows[None, :] * (table_start(P, 2) + 2 * P[16 + KERNEL] - 1)
        q_tile = load_rows(q + head * q_strides[4], offset, column, D)
        do_tile = load_rows(grad_out, rows * DV, v_column, DV)
        row_lse = tl.where(q_inside & q_exists, tl.load(lse + rows) * LOG2E, INF)
        row_delta = tl.load(delta + rows)
        s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)
        table_head = bias
        if BIAS:
            table_head = bias + head * table
        s = logits(s, scale, table_head, 0.0, rel, rel_rows, (slot >= 0)[:, None], q_slot[None, :],
                   slot[:, None], box, last, start, stop, length, k_size, P, BOX, T, FULL, ANY_FULL, True,
                   DYNAMIC, SEAMS, BIAS, REL)  # fmt: skip
        p = tl.exp2(s - row_lse[None, :])
        dv_tile = tl.dot(p.to(do_tile.dtype), do_tile, dv_tile, input_precision=PRECISION)
        dp = tl.dot(v_tile, tl.trans(do_tile), input_precision=PRECISION)
        ds = p * (dp - row_delta[None, :])
        dk_tile = tl.dot(ds.to(q_tile.dtype), q_tile, dk_tile, input_precision=PRECISION)
    dk_tile *= scale_out
    rows = image * (k_size[0] * k_size[1] * k_size[2]) + pixel_index(slot, start, stop, group, k_size, P, T, WIDE)
    rows = rows * kv_heads + kv_head
    stored = (inside & exists)[:, None]
    tl.store(dk + rows[:, None] * D + column[None, :], dk_tile.to(dk.dtype.element_ty),
             mask=stored & (column < D)[None, :])  # fmt: skip
    tl.store(dv + rows[:, None] * DV + v_column[None, :], dv_tile.to(dv.dtype.element_ty),
             mask=stored & (v_column < DV)[None, :])  # fmt: skip
    if EXTEND:
        outside = (inside & (exists == 0))[:, None]
        program = tl.program_id(0).to(tl.int64)
        tl.store(d_pad_k + program * D + column, tl.sum(tl.where(outside, dk_tile, 0.0), 0), mask=column < D)
        tl.store(d_pad_v + program * DV + v_column, tl.sum(tl.where(outside, dv_tile, 0.0), 0), mask=v_column < DV)


@triton.jit
def backward_extra(q, grad_out, lse, delta, extra_k, extra_v, dk, dv, q_strides, q_size, extra, splits, scale,
                   scale_out, WIDE: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr,
                   DV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of extra keys and values, from the queries of one of `splits` parts of an image: partial sums.

    dk and dv are (splits, B, extra, kv_heads, D or DV).
    """
    kv_heads: tl.constexpr = HEADS // GROUP
    kv_head = tl.program_id(0) % kv_heads
    blocks = (extra + BN - 1) // BN
    block = tl.program_id(0) // kv_heads % blocks
    image = tl.program_id(0) // kv_heads // blocks
    if WIDE:
        image = image.to(tl.int64)
    split = tl.program_id(1)
    pixels = q_size[0] * q_size[1] * q_size[2]
    share = (pixels + splits - 1) // splits
    column, v_column = tl.arange(0, BD), tl.arange(0, BDV)
    key = block * BN + tl.arange(0, BN)
    row = (image.to(tl.int64) * extra + tl.minimum(key, extra - 1)) * kv_heads + kv_head
    k_tile = load_rows(extra_k, row * D, column, D)
    v_tile = load_rows(extra_v, row * DV, v_column, DV)
    dk_tile = tl.zeros((BN, BD), tl.float32)
    dv_tile = tl.zeros((BN, BDV), tl.float32)
    for at in range(split * share, tl.minimum(split * share + share, pixels), BM):
        wanted = at + tl.arange(0, BM)
        exists = wanted < tl.minimum(split * share + share, pixels)
        pixel = tl.minimum(wanted, pixels - 1)
        if WIDE:
            pixel = pixel.to(tl.int64)
        offset = pixel // (q_size[1] * q_size[2]) * q_strides[1]
        offset += pixel // q_size[2] % q_size[1] * q_strides[2] + pixel % q_size[2] * q_strides[3]
        for member in range(0, GROUP):
            head = kv_head * GROUP + member
            rows = (image * pixels + pixel) * HEADS + head
            q_tile = load_rows(q + image.to(tl.int64) * q_strides[0] + head * q_strides[4], offset, column, D)
            do_tile = load_rows(grad_out, rows * DV, v_column, DV)
            row_lse = tl.where(exists, tl.load(lse + rows) * LOG2E, INF)
            s = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION) * scale
            p = tl.exp2(s - row_lse[None, :])
            dv_tile = tl.dot(p.to(do_tile.dtype), do_tile, dv_tile, input_precision=PRECISION)
            dp = tl.dot(v_tile, tl.trans(do_tile), input_precision=PRECISION)
            ds = p * (dp - tl.load(delta + rows)[None, :])
            dk_tile = tl.dot(ds.to(q_tile.dtype), q_tile, dk_tile, input_precision=PRECISION)
    target = (
        (split * (tl.num_programs(0) // (kv_heads * blocks)) + image).to(tl.int64) * extra + key
    ) * kv_heads + kv_head
    known = (key < extra)[:, None]
    tl.store(dk + target[:, None] * D + column[None, :], dk_tile * scale_out, mask=known & (column < D)[None, :])
    tl.store(dv + target[:, None] * DV + v_column[None, :], dv_tile, mask=known & (v_column < DV)[None, :])
