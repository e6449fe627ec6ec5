"""Triton kernel: forward pass of decoupled attention, one pass over the queries for text and user keys."""

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
def _scale_rows(
    x0: tl.tensor, x1: tl.tensor, factor: tl.tensor, D1: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Both chunks times (R,) factors."""
    x0 = x0 * factor[:, None]
    if D1 > 0:
        x1 = x1 * factor[:, None]
    return x0, x1


@triton.jit
def _text_tile(
    state: tl.tuple,
    q0: tl.tensor,
    q1: tl.tensor,
    keys: tl.tuple,
    to_bits: tl.float32,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    HAS_LENGTHS: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tl.tuple:
    """Running maximum, sum and output (m, total, acc0, acc1) after one more tile of text keys."""
    m, total, acc0, acc1 = state
    k, v, here = keys
    k0, k1 = load_rows(k, here, D, D0, D1)
    v0, v1 = load_rows(v, here, D, D0, D1)
    s = rows_by_rows(q0, q1, k0, k1, D1, INTERPRETED) * to_bits  # (ROWS, TILE)
    if HAS_LENGTHS:
        s = tl.where(here[None, :], s, EMPTY)
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.exp2(s - m_new[:, None])
    if HAS_LENGTHS:
        p = tl.where(here[None, :], p, 0.0)  # all keys so far may be padding
    alpha = tl.exp2(m - m_new)
    acc0, acc1 = _scale_rows(acc0, acc1, alpha, D1)
    acc0, acc1 = add_product(acc0, acc1, p, v0, v1, D1, INTERPRETED)
    return m_new, total * alpha + tl.sum(p, 1), acc0, acc1


@triton.jit
def _shifts(
    s: tl.tensor,
    c: tl.tensor,
    m_text: tl.tensor,
    TEXT: tl.constexpr,
    USER: tl.constexpr,
    SEGMENTS: tl.constexpr,
) -> tl.tensor:
    """Maximum of its segment for each score of the tail tile (ROWS, TAIL) with keys c."""
    shift = tl.zeros_like(s) + m_text[:, None]
    for i in tl.static_range(SEGMENTS):
        mine = in_segment(c, i, TEXT, USER, SEGMENTS)[None, :]
        shift = tl.where(mine, tl.max(tl.where(mine, s, EMPTY), 1)[:, None], shift)
    return shift


@triton.jit
def forward_kernel(
    q_ptr: tl.tensor,
    kt_ptr: tl.tensor,
    vt_ptr: tl.tensor,
    ku_ptr: tl.tensor,
    vu_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    lengths_ptr: tl.tensor,
    base_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    N: tl.int32,
    to_bits: tl.float32,
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
    """One program per ROWS queries of a head: FULL text tiles as in flash attention, then a tail tile with
    the remaining text keys and all user keys, each column with the shift and the weight of its segment.
    """
    ROW: tl.constexpr = H * D
    SLOTS: tl.constexpr = SEGMENTS + (TEXT > 0)
    b, h, n, ok, at = query_rows(N, H, D, ROWS)
    q0, q1 = load_rows(q_ptr + at, ok, D, D0, D1)
    pointers = (kt_ptr, vt_ptr, ku_ptr, vu_ptr)
    kt, vt, ku, vu = key_bases(pointers, b, h, TEXT, USER, TEXT_GROUP, USER_GROUP, ROW, D)
    valid = text_length(lengths_ptr, b, TEXT, HAS_LENGTHS)

    m = tl.full([ROWS], EMPTY, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc0, acc1 = zeros(ROWS, D0, D1)
    for i in range(FULL):
        c = i * TILE + tl.arange(0, TILE)
        state = (m, total, acc0, acc1)
        keys = (kt + c * ROW, vt + c * ROW, c < valid)
        m, total, acc0, acc1 = _text_tile(state, q0, q1, keys, to_bits, D, D0, D1, HAS_LENGTHS, INTERPRETED)

    c = FULL * TILE + tl.arange(0, TAIL)
    of_text = (c < TEXT) & (c < valid)
    here = of_text | ((c >= TEXT) & (c < TEXT + USER))
    k0, k1 = load_rows(key_rows(kt, ku, c, TEXT, ROW), here, D, D0, D1)
    v0, v1 = load_rows(key_rows(vt, vu, c, TEXT, ROW), here, D, D0, D1)
    s = tl.where(
        here[None, :], rows_by_rows(q0, q1, k0, k1, D1, INTERPRETED) * to_bits, EMPTY
    )  # (ROWS, TAIL)
    m_text = tl.maximum(m, tl.max(tl.where(of_text[None, :], s, EMPTY), 1))
    shift = _shifts(s, c, m_text, TEXT, USER, SEGMENTS)
    p = tl.where(here[None, :], tl.exp2(s - shift), 0.0)

    lse = lse_ptr + (b * H + h) * SLOTS * N + n
    if TEXT > 0:
        alpha = tl.exp2(m - m_text)
        total = total * alpha + tl.sum(tl.where(of_text[None, :], p, 0.0), 1)
        total = tl.where(total > 0, total, 1.0)  # a text of length 0 gives 0
        tl.store(lse, m_text + tl.log2(total), mask=ok)
        acc0, acc1 = _scale_rows(acc0, acc1, alpha / total, D1)
    else:
        total = total + 1.0
        acc0, acc1 = load_rows(base_ptr + at, ok, D, D0, D1)
        acc0, acc1 = acc0.to(tl.float32), acc1.to(tl.float32)
    w = p / total[:, None]
    for i in tl.static_range(SEGMENTS):
        mine = in_segment(c, i, TEXT, USER, SEGMENTS)[None, :]
        total_user = tl.sum(tl.where(mine, p, 0.0), 1)
        m_user = tl.max(tl.where(mine, s, EMPTY), 1)
        tl.store(lse + (SLOTS - SEGMENTS + i) * N, m_user + tl.log2(total_user), mask=ok)
        w = tl.where(mine, p * (tl.load(scale_ptr + b * SEGMENTS + i) / total_user)[:, None], w)
    acc0, acc1 = add_product(acc0, acc1, w, v0, v1, D1, INTERPRETED)
    store_rows(out_ptr + at, ok, acc0, acc1, D, D0, D1)
