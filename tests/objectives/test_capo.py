"""CaPO: golden numbers in both conventions of beta, lists, and where its minimum is."""

from __future__ import annotations

import pytest
import torch

from diffalign.objectives import Denoised, build
from tests.objectives.rows import PRECISIONS, check_golden, golden


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize(("beta", "convention"), [(1000.0, "diffusers_sd15"), (2000.0, "canonical")])
def test_golden(beta: float, convention: str, dtype: torch.dtype, rtol: float) -> None:
    d = golden("capo_regression", dtype)
    score = torch.cat([d["calibrated_w"], d["calibrated_l"]])
    check_golden(
        build("capo", beta=beta, beta_convention=convention), "capo_regression", dtype, rtol, score=score
    )


def ranking(error: list[float], score: list[float]) -> Denoised:
    n = len(error)
    return Denoised(
        error=torch.tensor(error, dtype=torch.float64, requires_grad=True),
        ref_error=torch.zeros(n, dtype=torch.float64),
        group=torch.zeros(n).long(),
        role=torch.zeros(n).long(),
        t=torch.zeros(n),
        score=torch.tensor(score, dtype=torch.float64),
    )


def test_a_list_is_the_mean_over_its_pairs() -> None:
    error, score = [0.1, 0.3, 0.6], [0.9, 0.5, 0.1]
    pairs = [build("capo", beta=2.0).loss(ranking([error[i], error[j]], [score[i], score[j]]))[0] for i, j in
             ((0, 1), (0, 2), (1, 2))]  # fmt: skip
    loss = build("capo", beta=2.0).loss(ranking(error, score))[0]
    torch.testing.assert_close(loss, torch.stack(pairs).mean(0))


def test_the_order_of_rows_does_not_matter() -> None:
    one = build("capo").loss(ranking([0.1, 0.3, 0.6], [0.9, 0.5, 0.1]))[0]
    other = build("capo").loss(ranking([0.6, 0.1, 0.3], [0.1, 0.9, 0.5]))[0]
    torch.testing.assert_close(one, other)


def test_nothing_to_learn_where_rewards_are_met() -> None:
    batch = ranking([0.1, 0.5], [0.9, 0.5])  # beta 2: the implied difference is 0.5 - 0.1
    loss, metrics = build("capo", beta=2.0).loss(batch)
    assert loss.item() == pytest.approx(0, abs=1e-15)
    assert torch.autograd.grad(loss.sum(), batch.error)[0].abs().max() < 1e-12
    assert metrics["accuracy"].item() == 1
    assert metrics["margin"].item() == pytest.approx(0.4)


def test_what_it_needs_is_declared() -> None:
    assert build("capo").needs == {"score"}
    assert build("capo").data == "ranking"
    assert not build("capo").coupled
