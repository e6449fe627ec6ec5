"""The study of ways of choosing: its counts by hand, and that learning helps."""

import numpy as np
import pytest
import torch

from diffalign.votes.choose import CHOOSERS
from diffalign.votes.choose_study import (
    Scene,
    StudyOptions,
    page,
    picture_features,
    study,
    votes_until,
    win_rate,
)
from diffalign.world.grammar import single_prompts
from diffalign.world.oracle import measure
from diffalign.world.shapes import draw


def scene(prompts: int, seeds: int, seed: int) -> Scene:
    """Rendered pictures instead of generated ones."""
    chosen = [p for p in single_prompts("train") if p.size is None][:prompts]
    rng = np.random.default_rng(seed)
    drawn = draw([p for p in chosen for _ in range(seeds)], rng)
    found, pictures = measure(drawn), (drawn * 255).round().to(torch.uint8).unflatten(0, (prompts, seeds))
    features = picture_features(chosen, pictures, found)
    flat = features.reshape(-1, features.shape[-1])
    features = (features - flat.mean(0)) / (flat.std(0) + 1e-9)
    return Scene(prompts=chosen, pictures=pictures, features=features, found=found)


def test_a_count_is_the_first_of_two_fits_at_the_target() -> None:
    assert votes_until(np.array([0.71, 0.5, 0.7, 0.8]), 5) == 15
    assert votes_until(np.array([0.5, 0.7]), 5) == 10
    assert votes_until(np.array([0.5, 0.6]), 5) is None


def test_win_rate_by_hand() -> None:
    features = np.array([[[0.0], [1.0]], [[1.0], [0.0]], [[0.0], [1.0]]])
    utility = np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # picks 1, 0, 1: a win, a tie, a loss
    assert win_rate(features, utility, np.array([1.0])) == pytest.approx(0.5)
    assert win_rate(features, utility, np.array([-1.0])) == pytest.approx((0.5 + 1 + 0.5) / 3)


@pytest.mark.slow
def test_every_way_learns_and_is_reported() -> None:
    options = StudyOptions(people=2, most=30, held_out=20)
    train, test = scene(12, 8, 0), scene(20, 4, 1)
    found = study(options, train, test)
    assert [n.way for n in found] == list(CHOOSERS)
    assert all(len(n.curve) == 15 for n in found)
    assert max(n.curve[-1] for n in found) > 0.55
    text = page(found, options, test)
    assert all(f"| `{way}` |" in text for way in CHOOSERS)
