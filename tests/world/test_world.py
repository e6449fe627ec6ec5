"""The shapes world: grammar, renderer, oracle on sound and on spoilt pictures, raters and their votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from diffalign.train.blocks import WorldConfig
from diffalign.world import votes
from diffalign.world.grammar import (
    COLOURS,
    HUES,
    Prompt,
    double_prompts,
    is_heldout,
    parse,
    sample_prompts,
    single_prompts,
)
from diffalign.world.oracle import measure, obeys
from diffalign.world.raters import AXES, TASTES, Population, Rater, leaves_open, named_rater
from diffalign.world.shapes import MAX_ROTATION, draw, render, sample_scenes
from diffalign.world.votes import like_records, ranking_records, vote_records, world_prompts, world_records


def pictures(n: int, seed: int = 0, double: float = 0.0) -> tuple[list[Prompt], Tensor]:
    rng = np.random.default_rng(seed)
    prompts = sample_prompts(n, rng, "heldout", double_share=double)
    return prompts, draw(prompts, rng)


def test_every_prompt_is_parsed_back() -> None:
    for prompt in (*single_prompts("train"), *single_prompts("heldout"), *double_prompts("heldout")[:500]):
        assert parse(str(prompt)) == prompt
    for text in (
        "a red dog",
        "red circle",
        "a large large red circle",
        "a red circle on a mauve background",
        "",
    ):
        with pytest.raises(ValueError, match="no prompt of the shapes world"):
            parse(text)


def test_held_out_prompts_never_meet_training() -> None:
    assert not set(single_prompts("train")) & set(single_prompts("heldout"))
    assert len(single_prompts("heldout")) >= 500
    assert all(is_heldout(p) for p in single_prompts("heldout"))


def test_about_half_of_the_prompts_leave_size_or_background_open() -> None:
    prompts = sample_prompts(2000, np.random.default_rng(0), double_share=0.0)
    assert abs(np.mean([p.size is None for p in prompts]) - 0.5) < 0.05
    assert abs(np.mean([p.background is None for p in prompts]) - 0.5) < 0.05


def test_colours_are_far_apart_and_shapes_recognisable() -> None:
    hues = sorted(HUES.values())
    assert min((b - a) % 360 for a, b in zip(hues, hues[1:] + hues[:1], strict=True)) >= 35
    scenes = sample_scenes(sample_prompts(500, np.random.default_rng(1)), np.random.default_rng(1))
    assert scenes.radius.min() >= 0.18
    assert scenes.rotation.abs().max() <= MAX_ROTATION
    assert render(scenes).min() >= 0
    assert render(scenes).max() <= 1


@pytest.mark.slow
def test_oracle_reads_two_thousand_rendered_pictures() -> None:
    prompts, x = pictures(2000)
    found = obeys(measure(x), prompts)
    for part in ("shape", "colour", "background", "size"):
        assert getattr(found, part).float().mean() >= 0.99, part


@pytest.mark.slow
def test_oracle_reads_pictures_of_one_and_two_objects() -> None:
    for double in (0.0, 1.0):
        prompts, x = pictures(200, 3, double)
        assert obeys(measure(x), prompts).all.float().mean() >= 0.98


def test_oracle_measures_what_was_drawn() -> None:
    prompts = list(single_prompts("heldout")[:200])
    scenes = sample_scenes(prompts, np.random.default_rng(2))
    found = measure(render(scenes))
    assert (found.radius[:, 0] - scenes.radius[:, 0]).abs().mean() < 0.005
    assert (found.value[:, 0] - scenes.hsv[:, 0, 2]).abs().mean() < 0.01
    assert (found.saturation[:, 0] - scenes.hsv[:, 0, 1]).abs().mean() < 0.01
    assert (found.centre[:, 0] - scenes.centre[:, 0]).abs().mean() < 0.02
    softness = np.corrcoef(found.edge_width.numpy(), scenes.softness.numpy())[0, 1]
    assert softness > 0.7
    assert set(found.colour[:, 0].tolist()) <= set(range(len(COLOURS)))


@pytest.mark.parametrize(
    ("spoil", "most"),
    [
        (lambda x: gaussian_blur(x, [25, 25], [4.0, 4.0]), 0.02),
        (lambda x: gaussian_blur(x, [49, 49], [8.0, 8.0]), 0.05),
        (
            lambda x: (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(
                0, 1
            ),
            0.0,
        ),
        (lambda x: torch.rand(x.shape, generator=torch.Generator().manual_seed(0)), 0.0),
        (lambda x: torch.full_like(x, 0.5), 0.0),
        (lambda x: torch.zeros_like(x), 0.0),
    ],
    ids=["blurred", "very blurred", "noisy", "noise", "grey", "black"],
)
@pytest.mark.slow
def test_oracle_sees_no_shape_in_spoilt_pictures(spoil: object, most: float) -> None:
    prompts, x = pictures(100, 4)
    found = measure(spoil(x))  # type: ignore[operator]
    assert found.recognised.float().mean() <= most
    assert obeys(found, prompts).all.float().mean() <= most


def test_oracle_reads_the_picture_and_not_the_parameters() -> None:
    prompts, x = pictures(50, 5)
    wrong = obeys(measure(x.roll(1, 0)), prompts)  # every picture under another's prompt
    assert wrong.all.float().mean() < 0.2


def test_oracle_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"reads \(B, 3, 64, 64\)"):
        measure(torch.zeros(1, 3, 32, 32))
    assert measure(torch.zeros(0, 3, 64, 64)).shape.shape == (0, 2)


@pytest.mark.slow
def test_tastes_come_in_opposite_pairs_and_differ() -> None:
    assert len(TASTES) >= 8
    prompts, x = pictures(300, 6)
    found = measure(x)
    free = [i for i, p in enumerate(prompts) if p.size is None and p.background is None]
    scores = {t: named_rater(t).utility(found, prompts)[free] for t in TASTES}
    for one, other in (
        ("large", "small"),
        ("left", "right"),
        ("light", "dark"),
        ("warm", "cool"),
        ("sharp", "soft"),
    ):
        torch.testing.assert_close(scores[one], -scores[other], rtol=0, atol=1e-5)
    correlation = np.corrcoef(torch.stack([scores["large"], scores["warm"], scores["dark"]]).numpy())
    assert np.abs(correlation - np.eye(3)).max() < 0.4


def test_tastes_act_only_on_what_the_prompt_leaves_open() -> None:
    prompts, x = pictures(200, 7)
    utility = named_rater("large").utility(measure(x), prompts)
    settled = torch.tensor([p.size is not None for p in prompts])
    assert (utility[settled] == 0).all()
    assert utility[~settled].std() > 0.5
    assert not leaves_open(parse("a large red circle"), TASTES["large"])
    assert leaves_open(parse("a large red circle"), TASTES["dark"])


def test_destroying_pictures_never_wins() -> None:
    prompts, x = pictures(100, 8)
    noise, clean = measure(torch.rand_like(x)), measure(x)
    for taste in TASTES:
        rater = named_rater(taste)
        assert rater.utility(noise, prompts).max() == rater.unrecognisable
        assert rater.utility(clean, prompts).min() >= rater.unrecognisable + 0.5


def test_votes_follow_bradley_terry() -> None:
    rng, n = np.random.default_rng(0), 20_000
    rater = Rater(name="r", weights={"size": 1.0}, temperature=0.5, tie_below=0.0)
    for gap in (0.0, 0.5, 1.0):
        votes = rater.vote(torch.full((n,), gap), torch.zeros(n), rng)
        expected = 0.5 if gap == 0 else 1 / (1 + np.exp(-gap / 0.5))
        assert abs(votes.mean() - expected) < 0.015
    careful = named_rater("large", temperature=1e-3)
    assert careful.vote(torch.ones(100), torch.zeros(100), rng).min() == 1
    assert set(careful.vote(torch.full((50,), 0.05), torch.zeros(50), rng)) == {0.5}
    careless = named_rater("large", temperature=1e-3, careless=1.0)
    assert abs(careless.vote(torch.ones(n), torch.zeros(n), rng).mean() - 0.5) < 0.02


def test_populations_share_and_oppose() -> None:
    raters = Population(people=12, clusters=4, careless_people=3).raters()
    assert [r.name for r in raters] == [
        r.name for r in Population(people=12, clusters=4, careless_people=3).raters()
    ]
    assert sum(r.careless > 0 for r in raters) == 3
    vectors = np.array([[r.weights[a] for a in AXES] for r in raters])
    vectors -= vectors.mean(0)
    same, opposite = vectors[0] @ vectors[4], vectors[0] @ vectors[1]
    assert same > 0 > opposite


def test_wrong_raters_are_named() -> None:
    with pytest.raises(ValueError, match=r"no taste 'huge'.*large"):
        named_rater("huge")
    with pytest.raises(ValueError, match="unknown axes"):
        Rater(name="x", weights={"smell": 1.0})
    with pytest.raises(ValueError, match="temperature > 0"):
        Rater(name="x", weights={"size": 1.0}, temperature=0.0)


def test_world_prompts_leave_the_taste_open_and_suffice() -> None:
    for taste in TASTES:
        prompts = world_prompts(taste, 1000, "heldout")
        assert len(set(prompts)) == len(prompts) >= 100
        assert all(leaves_open(p, TASTES[taste]) and is_heldout(p) for p in prompts)


def test_vote_records_hold_every_pair_of_a_prompt() -> None:
    prompts = list(single_prompts("train")[:3])
    rng = np.random.default_rng(0)
    x = torch.stack([(draw(prompts, rng) * 255).byte() for _ in range(4)], 1)
    records = vote_records(prompts, x, named_rater("dark"), rng)
    assert len(records) == 3 * 6
    assert {r.rater for r in records} == {"dark"}
    assert all(r.prompt == str(prompts[i % 3]) for i, r in enumerate(records))


def test_votes_are_for_the_picture_that_is_liked_better() -> None:
    prompts = [p for p in single_prompts("train") if leaves_open(p, TASTES["large"])][:6]
    pictures = []
    for radius in (0.2, 0.35):
        scenes = sample_scenes(prompts, np.random.default_rng(0))
        scenes.centre[:], scenes.radius[:] = 0.5, radius
        pictures.append((render(scenes) * 255).byte())
    rater = Rater(name="sure", weights=TASTES["large"], temperature=1e-3)
    records = vote_records(prompts, torch.stack(pictures, 1), rater, np.random.default_rng(0))
    assert {r.values for r in records} == {(0.0, 1.0)}


def small_and_large(prompts: list[Prompt]) -> Tensor:
    """(P, 4, 3, 64, 64) pictures whose shapes grow from one to the next."""
    pictures = []
    for radius in (0.19, 0.24, 0.3, 0.36):
        scenes = sample_scenes(prompts, np.random.default_rng(0))
        scenes.centre[:], scenes.radius[:] = 0.5, radius
        pictures.append((render(scenes) * 255).byte())
    return torch.stack(pictures, 1)


def test_likes_and_rankings_follow_the_taste() -> None:
    prompts = [p for p in single_prompts("train") if leaves_open(p, TASTES["large"])][:6]
    pictures, rng = small_and_large(prompts), np.random.default_rng(0)
    rater = Rater(name="sure", weights=TASTES["large"], temperature=1e-3)
    likes = like_records(prompts, pictures, rater, rng)
    assert [r.values for r in likes[:6]] == [(0.0,)] * 6
    assert [r.values for r in likes[-6:]] == [(1.0,)] * 6
    rankings = ranking_records(prompts, pictures, rater, rng)
    assert {r.values for r in rankings} == {(0, 1 / 3, 2 / 3, 1)}
    assert [r.prompt for r in rankings] == [str(p) for p in prompts]
    assert [len(r.images) for r in ranking_records(prompts, pictures, rater, rng, 2)] == [2] * 12


def test_rankings_are_noisy_as_plackett_and_luce_say(monkeypatch: pytest.MonkeyPatch) -> None:
    # two pictures: the better one is first with probability sigmoid(gap / temperature)
    prompts = [p for p in single_prompts("train") if leaves_open(p, TASTES["large"])][:40]
    pictures = small_and_large(prompts)[:, [0, 2]]
    rater = Rater(name="unsure", weights=TASTES["large"], temperature=2.0)
    rng, judged = np.random.default_rng(0), votes._judged(prompts, pictures, rater)
    monkeypatch.setattr(votes, "_judged", lambda *_: judged)  # measuring them once is enough
    first = [r.values[1] for _ in range(20) for r in ranking_records(prompts, pictures, rater, rng, 2)]
    utility = rater.score(pictures.flatten(0, 1).float() / 255, [p for p in prompts for _ in range(2)])
    chance = torch.sigmoid((utility[1::2] - utility[::2]) / 2).mean()
    assert 0.55 < chance < 0.9
    assert np.mean(first) == pytest.approx(float(chance), abs=0.05)


def test_a_taste_with_few_prompts_says_that_it_makes_fewer_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def generate_base(policy: object, prompts: list[str], seeds: list[int], *rest: object) -> Tensor:
        return torch.zeros(len(prompts), len(seeds), 3, 64, 64, dtype=torch.uint8)

    monkeypatch.setattr(votes, "generate_base", generate_base)
    world_records(cast(Any, None), WorldConfig(taste="warm", images=240, per_prompt=2), tmp_path)
    assert "only 160 pictures are made" in caplog.text
    caplog.clear()
    world_records(cast(Any, None), WorldConfig(taste="warm", images=7, per_prompt=2), tmp_path)
    assert caplog.text == ""


def test_votes_are_cast_on_training_prompts_with_seeds_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def generate_base(
        policy: object, prompts: list[str], seeds: list[int], sampling: object, *rest: object
    ) -> Tensor:
        asked.append((prompts, seeds))
        rng = np.random.default_rng(0)
        return torch.stack([(draw([parse(p) for p in prompts], rng) * 255).byte() for _ in seeds], 1)

    monkeypatch.setattr(votes, "generate_base", generate_base)
    records = world_records(cast(Any, None), WorldConfig(images=12, per_prompt=3), tmp_path)
    ((prompts, seeds),) = asked
    assert len(records) == 4 * 3
    assert [r.prompt for r in records[:4]] == prompts
    assert not any(is_heldout(parse(p)) for p in prompts)
    assert len(seeds) == 3
    assert min(seeds) >= 1000  # the evaluation counts from 0, validation from 500
