"""Triton kernels: backward pass of decoupled attention. Every sum has one fixed order; nothing is atomic."""

from __future__ import annotations

import triton
import triton.language as tl

from diffalign.attention.tiles import (
    EMPTY,
    add_product,
    in_segment,
    key_bases,
    key_rows,
    load_rows,
    query_rows,
    rows_by_rows,
    store_rows,
    text_length,
    zeros,
)


@triton.jit
def _text_tile(
    dq: tl.tuple,
    of_queries: tl.tuple,
    keys: tl.tuple,
    to_bits: tl.float32,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tuple:
    """Chunks of dQ after one more tile of text keys; of_queries: q, dO, log-sum-exp and delta of the rows."""
    q0, q1, g0, g1, lse, delta = of_queries
    k, v, here = keys
    k0, k1 = load_rows(k, here, D, D0, D1)
    v0, v1 = load_rows(v, here, D, D0, D1)
    s = rows_by_rows(q0, q1, k0, k1, D1, INTERPRETED) * to_bits
    p = tl.exp2(tl.where(here[None, :], s - lse[:, None], EMPTY))
    dp = rows_by_rows(g0, g1, v0, v1, D1, INTERPRETED)
    return add_product(dq[0], dq[1], p * (dp - delta[:, None]), k0, k1, D1, INTERPRETED)


@triton.jit
def _spread(
    first: tl.tensor,
    ok: tl.tensor,
    of_text: tl.tensor,
    c: tl.tensor,
    N: tl.int32,
    TEXT: tl.constexpr,
    USER: tl.constexpr,
    SEGMENTS: tl.constexpr,
) -> tl.tensor:
    """A number per row and segment as (rows, keys c): slots N apart from ``first`` on, the text's given."""
    x = of_text[:, None] + tl.zeros_like(c).to(tl.float32)[None, :]
    for i in tl.static_range(SEGMENTS):
        of_user = tl.load(first + (i + (TEXT > 0)) * N, mask=ok, other=0.0)
        x = tl.where(in_segment(c, i, TEXT, USER, SEGMENTS)[None, :], of_user[:, None], x)
    return x


@triton.jit
def _row_sums(
    rows: tl.tensor,
    ok: tl.tensor,
    g0: tl.tensor,
    g1: tl.tensor,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
) -> tl.tensor:
    """Inner products of rows at these pointers with the rows of g."""
    o0, o1 = load_rows(rows, ok, D, D0, D1)
    total = tl.sum(g0.to(tl.float32) * o0.to(tl.float32), 1)
    if D1 > 0:
        total += tl.sum(g1.to(tl.float32) * o1.to(tl.float32), 1)
    return total


@triton.jit
def queries_kernel(
    q_ptr: tl.tensor,
    kt_ptr: tl.tensor,
    vt_ptr: tl.tensor,
    ku_ptr: tl.tensor,
    vu_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    out_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    dq_ptr: tl.tensor,
    N: tl.int32,
    to_bits: tl.float32,
    root: tl.float32,
    H: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    TEXT: tl.constexpr,
    USER: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TEXT_GROUP: tl.constexpr,
    USER_GROUP: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> None:
    """dQ of ROWS queries of a head, and their delta = rowsum(P dP) of every segment.

    The tail tile comes first: it gives the deltas of the user segments, and with them that of the text is
    rowsum(dO O) minus theirs, so that no further pass over the text keys is needed.
    """
    ROW: tl.constexpr = H * D
    SLOTS: tl.constexpr = SEGMENTS + (TEXT > 0)
    b, h, n, ok, at = query_rows(N, H, D, ROWS)
    stat = (b * H + h) * SLOTS * N + n  # (ROWS,), slot 0 of lse and delta
    q0, q1 = load_rows(q_ptr + at, ok, D, D0, D1)
    g0, g1 = load_rows(grad_ptr + at, ok, D, D0, D1)
    pointers = (kt_ptr, vt_ptr, ku_ptr, vu_ptr)
    kt, vt, ku, vu = key_bases(pointers, b, h, TEXT, USER, TEXT_GROUP, USER_GROUP, ROW, D)
    valid = text_length(lengths_ptr, b, TEXT, HAS_LENGTHS)

    c = FULL * TILE + tl.arange(0, TAIL)
    of_text = ((c < TEXT) & (c < valid))[None, :]
    here = (c < valid) & (c < TEXT) | ((c >= TEXT) & (c < TEXT + USER))
    k0, k1 = load_rows(key_rows(kt, ku, c, TEXT, ROW), here, D, D0, D1)
    v0, v1 = load_rows(key_rows(vt, vu, c, TEXT, ROW), here, D, D0, D1)
    lse = tl.load(lse_ptr + stat, mask=ok, other=0.0)  # of the text, where there is one
    shift = _spread(lse_ptr + stat, ok, lse, c, N, TEXT, USER, SEGMENTS)  # (ROWS, TAIL)
    s = rows_by_rows(q0, q1, k0, k1, D1, INTERPRETED) * to_bits
    p = tl.exp2(tl.where(here[None, :], s - shift, EMPTY))
    dp = rows_by_rows(g0, g1, v0, v1, D1, INTERPRETED)

    w = tl.zeros([ROWS, TAIL], tl.float32) + 1.0
    delta = tl.zeros([ROWS, TAIL], tl.float32)
    of_users = tl.zeros([ROWS], tl.float32)
    for i in tl.static_range(SEGMENTS):
        mine = in_segment(c, i, TEXT, USER, SEGMENTS)[None, :]
        delta_user = tl.sum(tl.where(mine, p * dp, 0.0), 1)
        tl.store(delta_ptr + stat + (SLOTS - SEGMENTS + i) * N, delta_user, mask=ok)
        scale = tl.load(scale_ptr + b * SEGMENTS + i)
        w = tl.where(mine, scale, w)
        delta = tl.where(mine, delta_user[:, None], delta)
        of_users += scale * delta_user
    delta_text = tl.sum(tl.where(of_text, p * dp, 0.0), 1)
    if FULL > 0:
        delta_text = _row_sums(out_ptr + at, ok, g0, g1, D, D0, D1) - of_users
    if TEXT > 0:
        tl.store(delta_ptr + stat, delta_text, mask=ok)
    delta = tl.where(of_text, delta_text[:, None], delta)

    dq0, dq1 = zeros(ROWS, D0, D1)
    dq0, dq1 = add_product(dq0, dq1, w * p * (dp - delta), k0, k1, D1, INTERPRETED)
    for i in range(FULL):
        tile = i * TILE + tl.arange(0, TILE)
        keys = (kt + tile * ROW, vt + tile * ROW, tile < valid)
        of_queries = (q0, q1, g0, g1, lse, delta_text)
        dq0, dq1 = _text_tile((dq0, dq1), of_queries, keys, to_bits, D, D0, D1, INTERPRETED)
    store_rows(dq_ptr + at, ok, dq0 * root, dq1 * root, D, D0, D1)


@triton.jit
def keys_kernel(
    q_ptr: tl.tensor,
    kt_ptr: tl.tensor,
    vt_ptr: tl.tensor,
    ku_ptr: tl.tensor,
    vu_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    dk_ptr: tl.tensor,
    dv_ptr: tl.tensor,
    B: tl.int32,
    N: tl.int32,
    steps: tl.int32,
    to_bits: tl.float32,
    root: tl.float32,
    H: tl.constexpr,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    TEXT: tl.constexpr,
    USER: tl.constexpr,
    SEGMENTS: tl.constexpr,
    TEXT_GROUP: tl.constexpr,
    USER_GROUP: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    FIRST: tl.constexpr,
    KEYS: tl.constexpr,
    ROWS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> None:
    """Sums over ``steps`` tiles of ROWS queries towards dK and dV of KEYS keys, from key FIRST of the common
    axis on. Written in fp32 to (splits, B, TEXT + USER - FIRST, H, D), one slice per program_id(1).

    Keys are the rows here, so that a scale multiplies finished sums and small scales lose no bits in fp16.
    """
    ROW: tl.constexpr = H * D
    SLOTS: tl.constexpr = SEGMENTS + (TEXT > 0)
    head = tl.program_id(2)
    split = tl.program_id(1)
    b = (head // H).to(tl.int64)
    h = head % H
    c = FIRST + tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    pointers = (kt_ptr, vt_ptr, ku_ptr, vu_ptr)
    kt, vt, ku, vu = key_bases(pointers, b, h, TEXT, USER, TEXT_GROUP, USER_GROUP, ROW, D)
    valid = text_length(lengths_ptr, b, TEXT, HAS_LENGTHS)
    here = ((c < TEXT) & (c < valid)) | ((c >= TEXT) & (c < TEXT + USER))
    k0, k1 = load_rows(key_rows(kt, ku, c, TEXT, ROW), here, D, D0, D1)
    v0, v1 = load_rows(key_rows(vt, vu, c, TEXT, ROW), here, D, D0, D1)

    dk0, dk1 = zeros(KEYS, D0, D1)
    dv0, dv1 = zeros(KEYS, D0, D1)
    for step in range(split * steps, split * steps + steps):
        n = step * ROWS + tl.arange(0, ROWS)
        ok = n < N
        at = (b * N) * ROW + h * D + n * ROW  # (ROWS,)
        stat = (b * H + h) * SLOTS * N + n
        q0, q1 = load_rows(q_ptr + at, ok, D, D0, D1)
        g0, g1 = load_rows(grad_ptr + at, ok, D, D0, D1)
        shift = tl.zeros([KEYS, ROWS], tl.float32) + tl.load(lse_ptr + stat, mask=ok, other=0.0)[None, :]
        delta = tl.zeros([KEYS, ROWS], tl.float32) + tl.load(delta_ptr + stat, mask=ok, other=0.0)[None, :]
        for i in tl.static_range(SEGMENTS):
            mine = in_segment(c, i, TEXT, USER, SEGMENTS)[:, None]
            slot = stat + (SLOTS - SEGMENTS + i) * N
            shift = tl.where(mine, tl.load(lse_ptr + slot, mask=ok, other=0.0)[None, :], shift)
            delta = tl.where(mine, tl.load(delta_ptr + slot, mask=ok, other=0.0)[None, :], delta)
        s = rows_by_rows(k0, k1, q0, q1, D1, INTERPRETED) * to_bits  # (KEYS, ROWS)
        p = tl.exp2(tl.where(here[:, None] & ok[None, :], s - shift, EMPTY))
        dv0, dv1 = add_product(dv0, dv1, p, g0, g1, D1, INTERPRETED)
        dp = rows_by_rows(v0, v1, g0, g1, D1, INTERPRETED)
        dk0, dk1 = add_product(dk0, dk1, p * (dp - delta), q0, q1, D1, INTERPRETED)

    w = tl.zeros([KEYS], tl.float32) + 1.0
    for i in tl.static_range(SEGMENTS):
        mine = in_segment(c, i, TEXT, USER, SEGMENTS)
        w = tl.where(mine, tl.load(scale_ptr + b * SEGMENTS + i), w)
    to = (((split * B + b) * (TEXT + USER - FIRST) + (c - FIRST)) * H + h) * D  # (KEYS,)
    inside = c < TEXT + USER
    store_rows(dv_ptr + to, inside, dv0 * w[:, None], dv1 * w[:, None], D, D0, D1)
    w = w * root
    store_rows(dk_ptr + to, inside, dk0 * w[:, None], dk1 * w[:, None], D, D0, D1)
