"""Decoupled attention on the CPU: the eager twin against the formula, and what every form must satisfy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.attention.decoupled import add_user_attention, choose, decoupled_attention, why_not
from diffalign.attention.sizes import Sizes
from tests.attention.oracle import Case, attend, largest_error, outcome

CASES = {
    "plain": Case(),
    "one of each": Case(batch=1, queries=1, text=1, user=1),
    "shared keys": Case(batch=4, text_group=2, user_group=4),
    "lengths, one of them 0": Case(batch=3, lengths=(0, 3, 7)),
    "two segments": Case(user=6, segments=2, heads=2),
    "added to a base": Case(text=0),
    "added, three segments": Case(text=0, user=6, segments=3, user_group=2),
    "huge scores": Case(spread=1e4),
}


@pytest.mark.parametrize("name", CASES)
def test_the_twin_computes_the_formula(name):
    case = CASES[name]
    truth = outcome(case, None, torch.float64)
    errors = largest_error(case, outcome(case, "eager", torch.float64), truth)
    assert set(errors) == {"out"} | {n for n in truth if truth[n].numel()}
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize("case", [Case(queries=2, lengths=(2, 7)), Case(queries=2, text=0, segments=2)])
def test_gradients_of_the_twin_are_those_of_differences(case):
    x = case.tensors()
    names = [n for n in x if (n == "base") == (case.text == 0) or n not in ("base", "k_text", "v_text")]
    leaves = [x[n].requires_grad_() for n in names]

    def function(*values):
        return attend(case, x | dict(zip(names, values, strict=True)), "eager")

    assert torch.autograd.gradcheck(function, leaves)


def test_a_scale_of_zero_gives_the_text_bit_for_bit():
    x = Case().tensors()
    other = x | {"k_user": x["v_user"], "v_user": x["k_user"]}
    text = decoupled_attention(*(x[n] for n in ("q", "k_text", "v_text", "k_user", "v_user")), torch.zeros(2))
    same = decoupled_attention(
        *(other[n] for n in ("q", "k_text", "v_text", "k_user", "v_user")), torch.zeros(2)
    )
    assert torch.equal(text, same)


def test_the_order_of_user_tokens_does_not_matter():
    case = Case()
    x = case.tensors()
    shuffled = x | {n: x[n].flip(1) for n in ("k_user", "v_user")}
    torch.testing.assert_close(attend(case, shuffled, "eager"), attend(case, x, "eager"))


def test_segments_are_linear_in_their_scales():
    case = Case(segments=2)
    x = case.tensors()

    def at(*scale: float) -> torch.Tensor:
        return attend(case, x | {"scale": torch.tensor([scale, scale], dtype=torch.float64)}, "eager")

    mixed = at(0.3, -2.0) - at(0, 0)
    torch.testing.assert_close(mixed, 0.3 * (at(1, 0) - at(0, 0)) - 2.0 * (at(0, 1) - at(0, 0)))


def test_auto_on_a_cpu_is_the_twin_and_says_why():
    sizes = Sizes(
        batch=1, queries=1, heads=1, width=64, text=77, user=8, segments=1, text_group=1, user_group=1
    )
    cpu = torch.device("cpu")
    assert choose(sizes, torch.bfloat16, cpu, backward=True) == "eager"
    assert "on cpu" in (why_not(sizes, torch.bfloat16, cpu) or "")
    case = Case()
    x = case.tensors()
    assert torch.equal(attend(case, x, "auto"), attend(case, x, "eager"))


def problem(**changes):
    x = Case().tensors() | changes
    return [x[n] for n in ("q", "k_text", "v_text", "k_user", "v_user", "scale")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"k_text": torch.zeros(2, 7, 1, 8, dtype=torch.float64)}, r"k_text is \(2, 7, 1, 8\)"),
        ({"v_user": torch.zeros(2, 3, 1, 16, dtype=torch.float64)}, "they must be equal"),
        ({"k_user": torch.zeros(2, 4, 1, 16)}, "k_user is torch.float32 and q is torch.float64"),
        ({"scale": torch.zeros(3)}, r"scale is \(3, 1\)"),
        ({"scale": torch.zeros(2, 3)}, "4 user keys do not split into 3"),
        (
            {n: torch.zeros(3, 7, 1, 16, dtype=torch.float64) for n in ("k_text", "v_text")},
            "3 rows for a batch",
        ),
        (
            {n: torch.zeros(2, 0, 1, 16, dtype=torch.float64) for n in ("k_text", "v_text")},
            "add_user_attention",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        decoupled_attention(*problem(**changes))


def test_lengths_must_be_whole_numbers_of_every_sample():
    with pytest.raises(ValueError, match="whole numbers"):
        decoupled_attention(*problem(), lengths=torch.ones(2))
    with pytest.raises(ValueError, match=r"lengths is \(3,\)"):
        decoupled_attention(*problem(), lengths=torch.ones(3, dtype=torch.int64))


def test_a_base_must_be_like_the_queries():
    q, _, _, k, v, s = problem()
    with pytest.raises(ValueError, match="must be alike"):
        add_user_attention(q[:1], q, k, v, s)


def test_asking_for_kernels_where_none_run_is_refused():
    with pytest.raises(ValueError, match=r"cannot run: .*NVIDIA GPUs; use implementation"):
        decoupled_attention(*problem(), implementation="fused")
    with pytest.raises(ValueError, match="none of auto, fused, eager"):
        decoupled_attention(*problem(), implementation="quick")


def test_limits_of_the_kernels_are_named():
    from diffalign.attention.sizes import why_not_fused

    good = Sizes(
        batch=1, queries=1, heads=1, width=40, text=77, user=8, segments=1, text_group=1, user_group=1
    )
    assert why_not_fused(good, torch.float16) is None
    assert "float64" in (why_not_fused(good, torch.float64) or "")
    assert "44 wide" in (why_not_fused(replace(good, width=44), torch.float16) or "")
    assert "65 user keys" in (why_not_fused(replace(good, user=65), torch.float16) or "")
