"""What the kernels of decoupled attention share: rows in two column chunks, products, softmax segments.

A head of 40, 72, 80 or 160 columns would waste up to 44 % of a tile of the next power of two. So a row is
held as two chunks, 32 + 16 for 40 and 128 + 32 for 160. With one chunk (64, 128) ``D1`` is 0 and the second
member of every pair is a name for the first that nobody reads.
"""

from __future__ import annotations

import triton
import triton.language as tl

EMPTY = tl.constexpr(-1e30)
"""Score of no key, and running maximum before any. Finite, so that a segment without keys gives no NaN."""


@triton.jit
def load_rows(
    rows: tl.tensor, ok: tl.tensor, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Rows at these (R,) pointers as chunks (R, D0) and (R, D1); zeros where not ok."""
    x0 = tl.load(rows[:, None] + tl.arange(0, D0)[None, :], mask=ok[:, None], other=0.0)
    x1 = x0
    if D1 > 0:
        c = D0 + tl.arange(0, D1)
        x1 = tl.load(rows[:, None] + c[None, :], mask=ok[:, None] & (c < D)[None, :], other=0.0)
    return x0, x1


@triton.jit
def store_rows(
    rows: tl.tensor,
    ok: tl.tensor,
    x0: tl.tensor,
    x1: tl.tensor,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
) -> None:
    """Write chunks (R, D0) and (R, D1) to rows at these (R,) pointers."""
    to = rows.dtype.element_ty
    tl.store(rows[:, None] + tl.arange(0, D0)[None, :], x0.to(to), mask=ok[:, None])
    if D1 > 0:
        c = D0 + tl.arange(0, D1)
        tl.store(rows[:, None] + c[None, :], x1.to(to), mask=ok[:, None] & (c < D)[None, :])


@triton.jit
def key_rows(
    text: tl.tensor, user: tl.tensor, c: tl.tensor, TEXT: tl.constexpr, ROW: tl.constexpr
) -> tl.tensor:
    """Pointers to keys c of the common axis: text keys first, user keys from TEXT on; nothing is copied."""
    return tl.where(c < TEXT, text + c * ROW, user + (c - TEXT) * ROW)


@triton.jit
def dot(a: tl.tensor, b: tl.tensor, INTERPRETED: tl.constexpr) -> tl.tensor:
    """Product in fp32 of operands of one dtype; of fp32 ones as three products of tf32, which keep nearly all
    bits on tensor cores. The interpreter would multiply the bit patterns of bf16.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def rows_by_rows(
    a0: tl.tensor, a1: tl.tensor, b0: tl.tensor, b1: tl.tensor, D1: tl.constexpr, INTERPRETED: tl.constexpr
) -> tl.tensor:
    """Inner products (A, B) of the rows of a with the rows of b."""
    s = dot(a0, tl.trans(b0), INTERPRETED)
    if D1 > 0:
        s += dot(a1, tl.trans(b1), INTERPRETED)
    return s


@triton.jit
def add_product(
    acc0: tl.tensor,
    acc1: tl.tensor,
    w: tl.tensor,
    x0: tl.tensor,
    x1: tl.tensor,
    D1: tl.constexpr,
    INTERPRETED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Accumulators plus w @ x, with w rounded to the dtype of x."""
    w = w.to(x0.dtype)
    acc0 += dot(w, x0, INTERPRETED)
    if D1 > 0:
        acc1 += dot(w, x1, INTERPRETED)
    return acc0, acc1


@triton.jit
def zeros(R: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Accumulators (R, D0) and (R, D1) in fp32."""
    x0 = tl.zeros([R, D0], tl.float32)
    x1 = x0
    if D1 > 0:
        x1 = tl.zeros([R, D1], tl.float32)
    return x0, x1


@triton.jit
def in_segment(
    c: tl.tensor, i: tl.constexpr, TEXT: tl.constexpr, USER: tl.constexpr, SEGMENTS: tl.constexpr
) -> tl.tensor:
    """Which keys c of the common axis belong to user segment i."""
    each: tl.constexpr = USER // SEGMENTS
    return (c >= TEXT + i * each) & (c < TEXT + (i + 1) * each)


@triton.jit
def key_bases(
    pointers: tl.tuple,
    b: tl.tensor,
    h: tl.tensor,
    TEXT: tl.constexpr,
    USER: tl.constexpr,
    TEXT_GROUP: tl.constexpr,
    USER_GROUP: tl.constexpr,
    ROW: tl.constexpr,
    D: tl.constexpr,
) -> tl.tuple:
    """First text key, text value, user key, user value of this head and of the sample that owns b's keys."""
    kt, vt, ku, vu = pointers
    text = (b // TEXT_GROUP) * (TEXT * ROW) + h * D
    user = (b // USER_GROUP) * (USER * ROW) + h * D
    return kt + text, vt + text, ku + user, vu + user


@triton.jit
def text_length(
    lengths_ptr: tl.tensor, b: tl.tensor, TEXT: tl.constexpr, HAS_LENGTHS: tl.constexpr
) -> tl.tensor:
    """Text keys of sample b that are no padding."""
    valid = TEXT
    if HAS_LENGTHS:
        valid = tl.load(lengths_ptr + b)
    return valid


@triton.jit
def query_rows(N: tl.int32, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr) -> tl.tuple:
    """Sample, head, (ROWS,) queries of this program, which of them exist, and where their rows begin."""
    b = (tl.program_id(1) // H).to(tl.int64)
    h = tl.program_id(1) % H
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    return b, h, n, n < N, b * N * (H * D) + h * D + n * (H * D)
