"""Starts the kernels of decoupled attention: tiles, constants, grids, and the reduction of partial sums."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

from diffalign.attention.kernel_backward import keys_kernel, queries_kernel
from diffalign.attention.kernel_forward import forward_kernel
from diffalign.attention.sizes import Sizes

MULTIPROCESSORS_IN_INTERPRETER = 2
"""Of the pretended device: few, so that the interpreter also splits rows and reduces."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Rows of a program's tile and how it runs."""

    rows: int
    warps: int
    stages: int = 2
    keys: int = 0
    """Of the kernel of dK and dV."""
    text: int = 64
    """Text keys that the forward and the dQ kernel take at a time; the rest shares a tile with the users."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Contiguous tensors of one call, shapes as in ``decoupled_attention``; lengths is None or (B,) int32."""

    q: Tensor
    k_text: Tensor
    v_text: Tensor
    k_user: Tensor
    v_user: Tensor
    scale: Tensor
    lengths: Tensor | None

    def pointers(self) -> tuple[Tensor, ...]:
        """In the order of the kernels; where there are no lengths, any tensor stands in unread."""
        lengths = self.scale if self.lengths is None else self.lengths
        return (self.q, self.k_text, self.v_text, self.k_user, self.v_user, self.scale, lengths)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on the CPU; that is decided when they are imported."""
    return not isinstance(forward_kernel, JITFunction)


def chunks(width: int) -> tuple[int, int]:
    """Column chunks of a head: the largest power of two, then one for the rest (0 where nothing is left)."""
    first = 1 << (width.bit_length() - 1)
    rest = width - first
    return first, max(16, 1 << (rest - 1).bit_length()) if rest else 0


def query_tile(sizes: Sizes, dtype: torch.dtype) -> Tile:
    """Tile of the forward and of the dQ kernel. In half precision, and in fp32 up to a width of 64, nothing
    spills out of the registers on Hopper; wider heads in fp32 do, whatever the tile.
    """
    if dtype == torch.float32:
        return Tile(rows=64, warps=8, text=16)
    if sizes.width > 128:
        return Tile(rows=64, warps=8)
    return Tile(rows=128, warps=8) if sizes.queries > 64 else Tile(rows=64, warps=4)


def key_tile(sizes: Sizes, dtype: torch.dtype) -> Tile:
    """Tile of the kernel of dK and dV."""
    if dtype == torch.float32:
        return Tile(rows=16, warps=4, keys=16 if sizes.width > 96 else 32)
    return Tile(rows=32 if sizes.width > 96 else 64, warps=8, keys=64)


def shape_constants(sizes: Sizes, has_lengths: bool) -> dict[str, Any]:
    """Compile-time constants that all kernels take."""
    d0, d1 = chunks(sizes.width)
    return {
        "H": sizes.heads,
        "D": sizes.width,
        "D0": d0,
        "D1": d1,
        "TEXT": sizes.text,
        "USER": sizes.user,
        "SEGMENTS": sizes.segments,
        "TEXT_GROUP": sizes.text_group,
        "USER_GROUP": sizes.user_group,
        "HAS_LENGTHS": has_lengths,
        "INTERPRETED": interpreted(),
    }


def query_constants(sizes: Sizes, has_lengths: bool, tile: Tile) -> dict[str, Any]:
    """Constants of the forward and of the dQ kernel: full text tiles, and the tail with the users."""
    full = sizes.text // tile.text
    tail = max(16, triton.next_power_of_2(sizes.keys - full * tile.text))
    own = {"FULL": full, "TILE": tile.text, "TAIL": tail, "ROWS": tile.rows}
    return shape_constants(sizes, has_lengths) | own


def key_constants(sizes: Sizes, has_lengths: bool, tile: Tile, first: int) -> dict[str, Any]:
    """Constants of the kernel of dK and dV from key ``first`` on."""
    own = {"FIRST": first, "KEYS": tile.keys, "ROWS": tile.rows}
    return shape_constants(sizes, has_lengths) | own


def options(tile: Tile) -> dict[str, Any]:
    """How a kernel is compiled. Fusing products and sums is said outright: the default changes."""
    if interpreted():
        return {}
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def forward(x: Inputs, base: Tensor | None, sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D), and the log-sum-exp in bits (B, H, slots, N) in fp32, that of the text first."""
    out = torch.empty_like(x.q)
    lse = x.q.new_empty(sizes.batch, sizes.heads, sizes.slots, sizes.queries, dtype=torch.float32)
    tile = query_tile(sizes, x.q.dtype)
    root = 1 / math.sqrt(sizes.width)
    constants = query_constants(sizes, x.lengths is not None, tile) | options(tile)
    grid = (triton.cdiv(sizes.queries, tile.rows), sizes.batch * sizes.heads)
    with torch.cuda.device_of(x.q):
        forward_kernel[grid](
            *x.pointers(),
            x.q if base is None else base,
            out,
            lse,
            sizes.queries,
            root * math.log2(math.e),
            **constants,
        )
    return out, lse


def backward_queries(
    x: Inputs, out: Tensor, grad: Tensor, lse: Tensor, sizes: Sizes
) -> tuple[Tensor, Tensor]:
    """dQ (B, N, H, D), and rowsum(P dP) of every segment (B, H, slots, N) in fp32."""
    dq, delta = torch.empty_like(x.q), torch.empty_like(lse)
    tile = query_tile(sizes, x.q.dtype)
    root = 1 / math.sqrt(sizes.width)
    constants = query_constants(sizes, x.lengths is not None, tile) | options(tile)
    grid = (triton.cdiv(sizes.queries, tile.rows), sizes.batch * sizes.heads)
    with torch.cuda.device_of(x.q):
        queries_kernel[grid](
            *x.pointers(),
            out,
            grad,
            lse,
            delta,
            dq,
            sizes.queries,
            root * math.log2(math.e),
            root,
            **constants,
        )
    return dq, delta


def backward_keys(
    x: Inputs, grad: Tensor, lse: Tensor, delta: Tensor, sizes: Sizes, *, first: int
) -> tuple[Tensor, Tensor]:
    """dK and dV in fp32, (splits, B, keys - first, H, D) each: partial sums over the queries of a sample.

    first is 0, or the number of text keys when those need no gradient.
    """
    tile = key_tile(sizes, x.q.dtype)
    key_tiles = triton.cdiv(sizes.keys - first, tile.keys)
    query_tiles = triton.cdiv(sizes.queries, tile.rows)
    steps = triton.cdiv(query_tiles, _splits(key_tiles * sizes.batch * sizes.heads, query_tiles, x.q.device))
    splits = triton.cdiv(query_tiles, steps)
    shape = (splits, sizes.batch, sizes.keys - first, sizes.heads, sizes.width)
    dk = x.q.new_empty(shape, dtype=torch.float32)
    dv = torch.empty_like(dk)
    root = 1 / math.sqrt(sizes.width)
    constants = key_constants(sizes, x.lengths is not None, tile, first) | options(tile)
    with torch.cuda.device_of(x.q):
        keys_kernel[(key_tiles, splits, sizes.batch * sizes.heads)](
            *x.pointers(),
            grad,
            lse,
            delta,
            dk,
            dv,
            sizes.batch,
            sizes.queries,
            steps,
            root * math.log2(math.e),
            root,
            **constants,
        )
    return dk, dv


def _splits(programs: int, query_tiles: int, device: torch.device) -> int:
    """Pieces of the query axis: enough for two programs on every multiprocessor."""
    processors = MULTIPROCESSORS_IN_INTERPRETER
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return min(query_tiles, int(triton.cdiv(2 * processors, programs)))
