"""The kernels compile for Ampere, Hopper and Blackwell without a GPU, and hardly spill registers.

The interpreter accepts programs that the compiler rejects (a variable that changes its shape in a loop, say).
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from diffalign.attention.sizes import Sizes

triton = pytest.importorskip("triton")
NAMES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
FP32 = ("scale_ptr", "lse_ptr", "delta_ptr", "dk_ptr", "dv_ptr")
REGISTERS = 255


class Used(NamedTuple):
    registers: int
    stack: int
    """Bytes of a thread's stack: what did not fit into registers."""


def sizes(width: int, **changes: int) -> Sizes:
    given = {"batch": 2, "queries": 4096, "heads": 8, "text": 77, "user": 16, "segments": 1}
    return Sizes(width=width, **given | {"text_group": 2, "user_group": 2} | changes)


def compiled(which: str, of: Sizes, dtype: torch.dtype, capability: int, lengths: bool = False) -> Used:
    from diffalign.attention import launch
    from diffalign.attention.kernel_backward import keys_kernel, queries_kernel
    from diffalign.attention.kernel_forward import forward_kernel

    kernel = {"forward": forward_kernel, "queries": queries_kernel, "keys": keys_kernel}[which]
    if which == "keys":
        tile = launch.key_tile(of, dtype)
        constants = launch.key_constants(of, lengths, tile, 0)
    else:
        tile = launch.query_tile(of, dtype)
        constants = launch.query_constants(of, lengths, tile)
    signature = {p.name: "constexpr" if p.name in constants else kind(p.name, dtype) for p in kernel.params}
    # As at a launch: torch aligns its memory.
    pointers = [i for i, name in enumerate(signature) if name.endswith("_ptr")]
    aligned = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    return resources(triton.compile(source, target=target, options=launch.options(tile)).asm["cubin"])


def kind(name: str, dtype: torch.dtype) -> str:
    if name in ("B", "N", "steps"):
        return "i32"
    if name == "lengths_ptr":
        return "*i32"
    return "*fp32" if name in FP32 else NAMES[dtype] if name.endswith("_ptr") else "fp32"


def resources(cubin: bytes) -> Used:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    file = Path(triton.knobs.cache.dir) / "kernel.cubin"
    file.write_bytes(cubin)
    said = subprocess.run(
        [tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return Used(int(found[1]), int(found[2]))


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "width", "capability", "stack"),
    [
        ("forward", 40, 80, 0),
        ("forward", 160, 100, 0),
        ("queries", 80, 80, 32),  # Hopper multiplies out of shared memory, Ampere out of registers
        ("queries", 160, 90, 0),
        ("keys", 160, 80, 128),
        ("keys", 160, 90, 0),
    ],
)
def test_half_precision_fits_into_registers(which, width, capability, stack):
    used = compiled(which, sizes(width), torch.bfloat16, capability)
    assert used.registers <= REGISTERS
    assert used.stack <= stack


@pytest.mark.slow
@pytest.mark.parametrize(("which", "capability"), [("forward", 90), ("queries", 100), ("keys", 100)])
def test_the_form_that_adds_with_several_segments(which, capability):
    used = compiled(which, sizes(64, text=0, user=24, segments=3), torch.float16, capability)
    assert used.stack == 0


@pytest.mark.slow
@pytest.mark.parametrize(("which", "stack"), [("forward", 8), ("queries", 0)])
def test_fp32_with_lengths(which, stack):
    used = compiled(which, sizes(64, text=140), torch.float32, 90, lengths=True)
    assert used.stack <= stack
