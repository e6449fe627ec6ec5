"""RankDPO: golden numbers, two images are DPO, model ranks by hand, lists of mixed length and any order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, build
from tests.objectives.rows import PRECISIONS, compare, golden


def ranking(
    error: list[float], score: list[float], group: list[int] | None = None, count: int | None = None
) -> Denoised:
    n = len(error)
    return Denoised(
        error=torch.tensor(error, dtype=torch.float64, requires_grad=True),
        ref_error=torch.zeros(n, dtype=torch.float64),
        group=torch.tensor(group or [0] * n),
        role=torch.zeros(n).long(),
        t=torch.zeros(n),
        score=torch.tensor(score, dtype=torch.float64),
        unit_count=count,
    )


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z))


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
@pytest.mark.parametrize("count", [None, 2])
def test_golden(count: int | None, dtype: torch.dtype, rtol: float) -> None:
    d, exact = golden("rankdpo_eps_beta5000", dtype), golden("rankdpo_eps_beta5000")
    pred = d["model_pred"].clone().requires_grad_(True)
    target = d["target"].flatten(0, 1)
    batch = Denoised(
        error=native_error(pred.flatten(0, 1), target),
        ref_error=native_error(d["ref_pred"].flatten(0, 1), target),
        group=torch.arange(2).repeat_interleave(4),
        role=torch.tensor([1, -1, -1, -1] * 2),
        t=torch.zeros(8),
        score=d["phi"].flatten(),
        unit_count=count,
    )
    loss, _ = build("rankdpo").loss(batch)
    compare(loss.mean(), pred, exact["loss"], exact["grad_model_pred"], rtol)


def dcg_weight(high: float, low: float) -> float:
    return (2**high - 2**low) * (1 / math.log(2) - 1 / math.log(3))


def test_two_images_are_weighted_dpo() -> None:
    batch = ranking([0.010, 0.013], [0.9, 0.2])
    loss, metrics = build("rankdpo", beta=1000.0).loss(batch)
    batch.role = torch.tensor([1, -1])
    expected = build("dpo", beta=1000.0).loss(batch)[0]
    torch.testing.assert_close(loss, dcg_weight(0.9, 0.2) * expected)
    assert metrics["pair_weight"].item() == pytest.approx(dcg_weight(0.9, 0.2))
    even = build("rankdpo", beta=1000.0, renormalise=True).loss(batch)[0]
    torch.testing.assert_close(even, expected)


def test_equal_scores_weigh_nothing() -> None:
    batch = ranking([0.3, 0.1, 0.2], [0.5, 0.5, 0.5])
    for renormalise in (False, True):
        loss = build("rankdpo", renormalise=renormalise).loss(batch)[0]
        assert loss.item() == 0
        assert torch.autograd.grad(loss.sum(), batch.error)[0].abs().max() == 0


def test_equal_scores_share_their_mean_rank() -> None:
    """Ranks 1, 2.5, 2.5, 4: neither of the equals stands above the other to the rest of the list."""
    error, phi, tau = [0.4, 0.2, 0.6, 0.1], [0.9, 0.5, 0.5, 0.1], [1, 2.5, 2.5, 4]
    s, gain = [-e / 2 for e in error], [2**p - 1 for p in phi]
    expected = -sum(
        (gain[i] - gain[j]) * (1 / math.log(1 + tau[i]) - 1 / math.log(1 + tau[j])) * log_sigmoid(s[i] - s[j])
        for i in range(4)
        for j in range(4)
        if phi[i] > phi[j]
    )
    assert build("rankdpo", beta=1.0).loss(ranking(error, phi))[0].item() == pytest.approx(expected)


def test_renormalised_weights_have_mean_one() -> None:
    batch = ranking([0.3, 0.1, 0.2, 0.4], [0.9, 0.5, 0.5, 0.1])
    metrics = build("rankdpo", renormalise=True).loss(batch)[1]
    assert metrics["pair_weight"].item() == pytest.approx(1.0)


def test_model_ranks_by_hand() -> None:
    """The policy puts image 1 above image 0 although the data say otherwise: only the discounts move."""
    error, phi = [0.4, 0.2, 0.6], [1.0, 0.5, 0.0]  # s = -e / 2: the model's ranks are 2, 1, 3
    s, gain = [-e / 2 for e in error], [2**p - 1 for p in phi]
    discount = [1 / math.log(1 + tau) for tau in (2, 1, 3)]
    expected = -sum(
        abs(gain[i] - gain[j]) * abs(discount[i] - discount[j]) * log_sigmoid(3 * (s[i] - s[j]))
        for i in range(3)
        for j in range(i + 1, 3)
    )
    loss, metrics = build("rankdpo", beta=3.0, ranks="model").loss(ranking(error, phi))
    assert loss.item() == pytest.approx(expected)
    assert metrics["accuracy"].item() == pytest.approx(2 / 3)
    assert loss.item() != pytest.approx(build("rankdpo", beta=3.0).loss(ranking(error, phi))[0].item())


def test_wins_make_any_scale_a_share() -> None:
    error = [0.3, 0.1, 0.2]
    raw = build("rankdpo", phi="wins").loss(ranking(error, [22.1, 20.0, 21.3]))[0]
    share = build("rankdpo").loss(ranking(error, [1.0, 0.0, 0.5]))[0]
    torch.testing.assert_close(raw, share)


def shuffled(batch: Denoised, order: Tensor) -> Denoised:
    assert batch.score is not None
    assert batch.ref_error is not None
    return Denoised(
        error=batch.error[order],
        ref_error=batch.ref_error[order],
        group=batch.group[order],
        role=batch.role[order],
        t=batch.t[order],
        score=batch.score[order],
    )


@pytest.mark.parametrize("options", [{}, {"ranks": "model"}, {"renormalise": True}, {"phi": "wins"}])
def test_lists_of_any_length_in_any_order(options: dict[str, object]) -> None:
    error, score = [0.3, 0.1, 0.2, 0.7, 0.5, 0.6, 0.4], [0.9, 0.9, 0.1, 0.3, 0.8, 0.8, 0.2]
    batch = ranking(error, score, [5, 5, 5, 9, 9, 9, 9])
    objective = build("rankdpo", beta=3.0, **options)
    together = objective.loss(batch)[0]
    alone = [objective.loss(ranking(error[a:b], score[a:b]))[0] for a, b in ((0, 3), (3, 7))]
    torch.testing.assert_close(together, torch.cat(alone))
    mixed = objective.loss(shuffled(batch, torch.tensor([6, 0, 4, 2, 3, 5, 1])))[0]
    torch.testing.assert_close(mixed, together)


def test_units_are_lists() -> None:
    batch = ranking([0.0] * 5, [0.0] * 5, [2, 2, 7, 7, 7])
    values = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0])
    assert build("rankdpo").units(batch, values).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("extreme", [0.0, 1e6])
def test_finite_at_extremes(extreme: float) -> None:
    batch = ranking([extreme, 0.0, extreme], [1.0, 0.5, 0.0])
    loss = build("rankdpo").loss(batch)[0].sum()
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, batch.error)[0]).all()


def test_what_it_needs_is_declared_and_missed() -> None:
    assert build("rankdpo").needs == {"score"}
    batch = ranking([0.1], [1.0])
    with pytest.raises(ValueError, match="1 images in 1 rankings"):
        build("rankdpo").loss(batch)
    batch = ranking([0.1, 0.2], [1.0, 0.0])
    batch.score = None
    with pytest.raises(ValueError, match="rankdpo needs a score for every image"):
        build("rankdpo").loss(batch)
    with pytest.raises(ValueError, match="beta is 0; it must be above 0"):
        build("rankdpo", beta=0)
