"""Foretelling votes: an encoder learns whose taste is whose, also of people it never saw."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffalign.data.records import BytesImage, Record
from diffalign.personalize.encoders import About, UserEncoder, make_options
from diffalign.personalize.encoders.about import pad_examples
from diffalign.personalize.evidence import PairFeatures
from diffalign.personalize.foretell import foretell, learn_reward, reward
from diffalign.personalize.history import Histories

WIDTH = 6


def votes(people: int, each: int, seed: int) -> tuple[Histories, dict[int, PairFeatures]]:
    """Person i likes entry 0 of the features, or its opposite, by whether i is even."""
    rng = np.random.default_rng(seed)
    records, features = [], {}
    for i in range(people * each):
        person, sides = i // each, torch.tensor(rng.standard_normal((2, WIDTH)), dtype=torch.float32)
        better = int((sides[0, 0] > sides[1, 0]) == (person % 2 == 0))
        records.append(_record(f"p{person}", i))
        f = torch.nn.functional.normalize(sides, dim=1)
        features[i] = (torch.zeros(WIDTH), f[1 - better], f[better])
    return Histories(records), features


def _record(rater: str, number: int) -> Record:
    images = tuple(BytesImage(f"{number} {side}".encode(), f"{number} {side}") for side in (0, 1))
    return Record(prompt=f"prompt {number}", images=images, kind="pair", values=(1.0, 0.0), rater=rater)


def encoder(**more: bool) -> UserEncoder:
    options = {"tokens": 2, "width": 8, "feature": WIDTH, "inner": 16, "depth": 1, "heads": 2, **more}
    torch.manual_seed(0)
    return make_options("few_shot", options).make()


def test_unseen_people_of_opposite_tastes_get_different_tokens() -> None:
    reader = encoder()
    histories, features = votes(20, 8, 0)
    assert foretell(reader, histories, features, steps=60, seed=1) < 0.9 * math.log(2)
    others, theirs = votes(8, 8, 1)
    examples = pad_examples([[theirs[p] for p in others.of[n]] for n in others.people])
    with torch.no_grad():
        x = reader.eval()(About(examples=examples)).flatten(1)
    x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    even = x[::2] @ x[::2].T, x[::2] @ x[1::2].T
    assert even[0].mean() > 0.3 > even[1].mean()


def test_the_same_seed_gives_the_same_encoder() -> None:
    histories, features = votes(4, 4, 0)
    found = []
    for _ in range(2):
        reader = encoder()
        foretell(reader, histories, features, steps=3, seed=5)
        found.append(torch.cat([p.flatten() for p in reader.parameters()]))
    assert torch.equal(*found)


def test_a_single_vote_of_each_is_nothing_to_foretell() -> None:
    histories, features = votes(3, 1, 0)
    with pytest.raises(ValueError, match="nothing to foretell"):
        foretell(encoder(), histories, features, steps=2)
    with pytest.raises(ValueError, match="steps is 0"):
        foretell(encoder(), histories, features, steps=0)


def test_votes_on_one_prompt_stand_for_nobody() -> None:
    histories, features = votes(2, 4, 0)
    same = Histories([replace(_record(r or "", i), prompt="one") for i, r in enumerate(histories.raters)])
    with pytest.raises(ValueError, match="nothing to foretell"):
        foretell(encoder(), same, features, steps=1)


def test_a_reward_is_the_root_of_the_width_times_the_product() -> None:
    f = torch.tensor([[0.6, 0.8, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert reward(f, torch.tensor([1.0, 2.0, 3.0, -1.0])).tolist() == pytest.approx([4.4, -2.0])


def test_the_weights_that_are_kept_foretell_votes_of_others() -> None:
    reader = encoder()
    histories, features = votes(20, 8, 0)
    found = learn_reward(reader, histories, features, steps=60, seed=1)
    assert found.loss < 0.9 * math.log(2)
    others, theirs = votes(8, 8, 1)
    examples = pad_examples([[theirs[p] for p in others.of[n][:4]] for n in others.people])
    with torch.no_grad():
        w = found.head(reader.eval()(About(examples=examples)).flatten(1))
    rest = [torch.stack([theirs[p][1] - theirs[p][2] for p in others.of[n][4:]]) for n in others.people]
    assert (reward(torch.stack(rest), w[:, None]) > 0).float().mean() > 0.75


def test_the_divergence_is_weighed_and_needs_a_posterior() -> None:
    histories, features = votes(6, 4, 0)
    found = []
    for kl in (0.0, 10.0):
        reader = encoder(variational=True)
        learn_reward(reader, histories, features, steps=30, kl=kl)
        examples = pad_examples([[features[p] for p in histories.of[n]] for n in histories.people])
        divergence = reader.encoded(About(examples=examples)).kl
        assert divergence is not None
        found.append(float(divergence.detach().mean()))
    assert found[1] < 0.5 * found[0]
    with pytest.raises(ValueError, match="variational"):
        learn_reward(encoder(), histories, features, steps=1, kl=1e-4)


def test_nobody_with_a_decided_vote_is_nothing_to_foretell() -> None:
    histories, _ = votes(2, 2, 0)
    with pytest.raises(ValueError, match="nothing to foretell"):
        learn_reward(encoder(), histories, {}, steps=1)
