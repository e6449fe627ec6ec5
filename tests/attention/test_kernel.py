"""The fused kernels, natively on a GPU, else in the interpreter of Triton (see test_interpreter.py)."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.attention.oracle import Case, attend, largest_error, outcome

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else pytest.mark.gpu
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU, or the interpreter that test_interpreter.py starts", allow_module_level=True)

TOLERANCE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 2e-2}
CASES = {
    "one of each": Case(batch=1, queries=1, width=40, text=1, user=1),
    "SD1.5": Case(batch=1, queries=40, heads=2, width=40, text=77, user=16),
    "SDXL": Case(queries=33, width=64, text=77, user=8, text_group=2, user_group=2),
    "two full tiles, nothing left": Case(batch=1, queries=5, width=72, text=128, user=4),
    "text in one tile": Case(queries=9, width=80, text=13, user=3),
    "rows split": Case(batch=1, queries=200, width=16, text=3, user=2),
    "lengths": Case(batch=4, queries=6, width=24, text=77, user=6, segments=3, lengths=(0, 5, 70, 77)),
    "lengths, one tile": Case(batch=2, queries=6, width=24, text=9, user=2, lengths=(0, 4), text_group=2),
    "added to a base": Case(queries=40, heads=2, width=48, text=0, user=8, segments=2, user_group=2),
    "many user keys": Case(batch=1, queries=3, width=32, text=127, user=64, segments=4),
    "huge scores": Case(batch=1, queries=20, width=40, text=77, user=4, spread=1e4),
}
HALF_CASES = {
    "wide": Case(batch=1, queries=20, width=160, text=77, user=16),
    "DiT": Case(batch=1, queries=20, width=72, text=70, user=4, segments=2),
    "added to a base": Case(batch=1, queries=20, width=128, text=0, user=8),
    "huge scores": Case(batch=1, queries=20, width=40, text=77, user=4, spread=1e4),
}


def check(case: Case, dtype: torch.dtype) -> None:
    truth = outcome(case, None, dtype)
    found = outcome(case, "fused", dtype, DEVICE)
    assert set(found) == {
        n for n in truth if truth[n].numel() and (case.text or n not in ("k_text", "v_text"))
    }
    errors = largest_error(case, found, truth)
    # A score is computed in fp32: the rounding of a huge one is what its exponential is off by.
    assert max(errors.values()) < max(TOLERANCE[dtype], 5 * torch.finfo(torch.float32).eps * case.spread), (
        errors
    )


@pytest.mark.parametrize("name", CASES)
def test_fp32(name):
    check(CASES[name], torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", HALF_CASES)
def test_half_precision(name, dtype):
    check(HALF_CASES[name], dtype)


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes(seed):
    random = torch.Generator().manual_seed(seed)

    def among(*choices: int) -> int:
        return choices[int(torch.randint(len(choices), (), generator=random))]

    segments = among(1, 1, 2)
    text = among(0, 1, 13, 64, 77, 150)
    batch = among(1, 2)
    case = Case(
        batch=batch,
        queries=among(1, 17, 64, 129),
        heads=among(1, 2),
        width=among(16, 40, 56, 96, 120, 160),
        text=text,
        user=segments * among(1, 2, 7, 16),
        segments=segments,
        text_group=among(1, batch),
        user_group=among(1, batch),
        lengths=tuple(among(0, 1, text) for _ in range(batch)) if text and among(0, 1) else None,
        seed=seed,
    )
    check(case, torch.float32)


SMALL = Case(batch=2, queries=4, width=16, text=3, user=2, text_group=2)


def small(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {n: x.to(DEVICE, dtype).requires_grad_() for n, x in SMALL.tensors().items()}


def gradients(out: torch.Tensor, x: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    leaves = [x[n] for n in ("q", "k_text", "v_text", "k_user", "v_user", "scale")]
    return list(torch.autograd.grad(out.square().sum(), leaves))


def test_two_runs_give_the_same_bits():
    case = Case(batch=1, queries=150, width=24, text=5, user=2)  # rows are split
    first, second = (outcome(case, "fused", torch.float16, DEVICE) for _ in range(2))
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_a_scale_of_zero_gives_the_text_bit_for_bit():
    x = small() | {"scale": torch.zeros(2, device=DEVICE)}
    other = x | {"k_user": x["v_user"], "v_user": x["k_user"]}
    assert torch.equal(attend(SMALL, x, "fused"), attend(SMALL, other, "fused"))


def test_operands_need_not_be_contiguous():
    x = small()
    strided = {n: v.transpose(1, 2).contiguous().transpose(1, 2) if v.ndim == 4 else v for n, v in x.items()}
    assert torch.equal(attend(SMALL, strided, "fused"), attend(SMALL, x, "fused"))


@pytest.mark.parametrize("frozen", [("k_text", "v_text"), ("k_text", "v_text", "q"), ("scale",)])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    x = small()
    every = dict(
        zip(
            ("q", "k_text", "v_text", "k_user", "v_user", "scale"),
            gradients(attend(SMALL, x, "fused"), x),
            strict=True,
        )
    )
    for name in frozen:
        x[name] = x[name].detach()
    attend(SMALL, x, "fused").square().sum().backward()
    assert all(x[n].grad is None for n in frozen)
    for name in set(every) - set(frozen):
        torch.testing.assert_close(x[name].grad, every[name])


def test_checkpointing():
    x = small()
    plain = attend(SMALL, x, "fused")
    recomputed = checkpoint(lambda q: attend(SMALL, x | {"q": q}, "fused"), x["q"], use_reentrant=False)
    assert torch.equal(plain, recomputed)
    for a, b in zip(gradients(plain, x), gradients(recomputed, x), strict=True):
        assert torch.equal(a, b)


def test_compile_without_a_graph_break():
    x = small()
    compiled = torch.compile(lambda y: attend(SMALL, y, "fused"), fullgraph=True, backend="aot_eager")
    plain, out = attend(SMALL, x, "fused"), compiled(x)
    torch.testing.assert_close(out, plain)
    for a, b in zip(gradients(plain, x), gradients(out, x), strict=True):
        torch.testing.assert_close(a, b)


def test_the_operator_keeps_the_rules_of_torch():
    from diffalign.attention.op import fused

    x = small()
    args = [x[n] for n in ("q", "k_text", "v_text", "k_user", "v_user", "scale")]
    lengths = torch.tensor([1, 3], dtype=torch.int32, device=DEVICE)
    torch.library.opcheck(fused, (*args, lengths, None))


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["SD1.5", "SDXL", "added to a base"])
def test_errors_are_like_those_of_torch(name, dtype):
    case = CASES[name]
    truth = outcome(case, None, dtype)
    ours = largest_error(case, outcome(case, "fused", dtype, DEVICE), truth)
    theirs = largest_error(case, outcome(case, "eager", dtype, DEVICE), truth)
    step = torch.finfo(dtype).eps
    assert all(ours[n] <= 1.5 * theirs[n] + step / 8 for n in ours), (ours, theirs)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
def test_captured_in_a_graph():
    x = {n: v.detach() for n, v in small(torch.float16).items()}
    expected = attend(SMALL, x, "fused")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(SMALL, x, "fused")
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)
