"""New people: by encoder, by weights of prototypes, by tokens; each in seconds."""

from __future__ import annotations

import math
import time

import pytest
import torch

from diffalign.personalize.encoders import About, make_options
from diffalign.personalize.encoders.about import pad_examples
from diffalign.personalize.new_user import encode, fit_tokens, fit_weights, nearest_mean
from scorers.pal_heads import PalHead, PalOptions


def test_an_encoder_needs_no_steps() -> None:
    torch.manual_seed(0)
    options = {"tokens": 4, "width": 6, "feature": 8, "inner": 8, "depth": 1, "heads": 2}
    inner = make_options("few_shot", options)
    votes = pad_examples([[tuple(torch.randn(3, 8))], [tuple(torch.randn(3, 8))] * 2])
    encoder = inner.make().train()
    found = encode(encoder, votes)
    assert found.shape == (2, 4, 6)
    assert encoder.training
    torch.testing.assert_close(found, encoder.eval()(About(examples=votes)))
    both = make_options("composition", {"encoder": inner}).make(3)
    assert encode(both, votes).shape == (2, 4, 6)
    with pytest.raises(ValueError, match="this encoder reads rows and no votes: fit weights"):
        encode(make_options("table").make(2), votes)
    with pytest.raises(ValueError, match="somebody has no votes"):
        encode(encoder, pad_examples([[], [tuple(torch.randn(3, 8))]]))


def test_weights_of_one_vote_by_hand() -> None:
    """Margins (2, -2), a sure label: the row is (r, -r) with r = 4 w (1 - w) sigma(-z), z = 2 (2 w - 1)."""
    row = fit_weights(torch.tensor([[2.0, -2.0]]), torch.tensor([1.0]))
    r = float(row[0])
    assert float(row[1]) == pytest.approx(-r)
    w = 1 / (1 + math.exp(-2 * r))
    z = 2 * (2 * w - 1)
    assert r == pytest.approx(4 * w * (1 - w) / (1 + math.exp(z)), abs=1e-5)
    tie = fit_weights(torch.tensor([[2.0, -2.0]]), torch.tensor([0.5]))
    assert tie.abs().max() < 1e-6


def test_votes_find_their_prototype_and_agree_with_pal() -> None:
    torch.manual_seed(0)
    margins = 3 * torch.randn(40, 5)
    labels = (margins[:, 2] > 0).float()
    begin = time.perf_counter()
    row = fit_weights(margins, labels, prior=0.01)
    assert time.perf_counter() - begin < 5
    assert int(row.argmax()) == 2
    assert row.softmax(0)[2] > 0.8
    head = PalHead(PalOptions(nearness="angle", point="Pw", groups=3, feature=6, width=4))
    first, second, label = torch.randn(8, 6), torch.randn(8, 6), torch.rand(8)
    assert head.fit_row(first, second, label).shape == fit_weights(torch.randn(8, 3), label).shape


def test_tokens_follow_their_votes_and_the_pull() -> None:
    """A reward that is the mean of tokens times a feature: votes say which way the mean must go."""
    x = torch.tensor([1.0, -1.0, 2.0])

    def loss(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(-tokens.mean() * x.abs()).mean()

    start = torch.zeros(4, 6)
    free, held = fit_tokens(loss, start, steps=50), fit_tokens(loss, start, steps=50, pull=100.0)
    assert loss(free) < loss(held) < loss(start)
    assert start.abs().max() == 0
    assert held.abs().max() < 0.2 * free.abs().max()
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        fit_tokens(lambda t: t.sum() * float("nan"), start)
    with pytest.raises(ValueError, match="steps is 0"):
        fit_tokens(loss, start, steps=0)


def test_the_mean_of_nearest_people() -> None:
    tokens = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    found = nearest_mean(tokens, torch.tensor([0.1, 0.5, 0.4]), 2)
    assert found.tolist() == [[1.5, 1.5], [1.5, 1.5]]
    with pytest.raises(ValueError, match="count is 4; it must be from 1 to 3"):
        nearest_mean(tokens, torch.rand(3), 4)


def test_wrong_votes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"margins \(0, 2\) and labels \(0,\)"):
        fit_weights(torch.zeros(0, 2), torch.zeros(0))
    with pytest.raises(ValueError, match="labels must lie"):
        fit_weights(torch.zeros(1, 2), torch.tensor([1.5]))
