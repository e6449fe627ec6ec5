"""A population: who has which taste, who is held out, what is seen by whom, and what the votes say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffalign.train.blocks import WorldConfig
from diffalign.world.measured import WIDTH, Measured
from diffalign.world.oracle import measure, obeys
from diffalign.world.population import PopulationConfig, population_prompts, taste_weights, votes_of
from diffalign.world.raters import AXES, LIMIT, leaves_open
from diffalign.world.shapes import draw

FEW = PopulationConfig(people=24, held_out=8, votes=6)


def pictures(prompts: int, each: int) -> torch.Tensor:
    some = [p for p in population_prompts("train")[:prompts] for _ in range(each)]
    found: torch.Tensor = (draw(some, np.random.default_rng(0)) * 255).byte()
    return found.view(prompts, each, *found.shape[1:])


def test_tastes_are_of_length_one_and_a_sum_has_both() -> None:
    assert taste_weights("dark") == {"shade": -1.0}
    both = taste_weights("dark+warm")
    assert both == pytest.approx({"shade": -(0.5**0.5), "warmth": 0.5**0.5})
    with pytest.raises(ValueError, match="cancel"):
        taste_weights("dark+light")


def test_people_have_their_taste_and_a_part_of_their_own() -> None:
    raters = FEW.raters()
    assert list(raters) == FEW.seen + FEW.unseen
    assert len(FEW.unseen) == 8
    assert {FEW.taste_of(n) for n in FEW.unseen} == set(FEW.tastes)
    for name, rater in raters.items():
        taste = taste_weights(FEW.taste_of(name))
        own = [rater.weights[axis] - taste.get(axis, 0.0) for axis in FEW.axes]
        assert np.linalg.norm(own) == pytest.approx(FEW.individual)
    assert raters == FEW.raters()
    assert raters != PopulationConfig(people=24, held_out=8, seed=1).raters()


def test_prompts_leave_every_axis_open_and_are_held_out() -> None:
    train, held = population_prompts("train"), population_prompts("heldout")
    assert not set(map(str, train)) & set(map(str, held))
    assert all(leaves_open(p, {axis: 1.0}) for p in train + held for axis in AXES)


def test_votes_are_decided_and_mostly_what_the_person_likes() -> None:
    shown, prompts = pictures(2, 6), population_prompts("train")[:2]
    raters = PopulationConfig(people=8, held_out=1, temperature=0.05).raters()
    records = votes_of(raters, prompts, shown, 10, 0)
    assert len(records) == 80
    assert not any(r.undecided for r in records)
    at = {image.tobytes(): (p, s) for p in range(2) for s in range(6) for image in [shown[p, s].numpy()]}
    found = measure(shown.flatten(0, 1).float() / 255)
    right = []
    for record in records:
        assert record.rater is not None
        u = raters[record.rater].utility(found, [p for p in prompts for _ in range(6)]).view(2, 6)
        sides = [at[_pixels(image).tobytes()] for image in record.images]
        assert sides[0] != sides[1]
        assert {str(prompts[p]) for p, _ in sides} == {record.prompt}
        right.append(u[sides[record.winner]] > u[sides[1 - record.winner]])
    assert np.mean(right) > 0.95
    assert records == votes_of(raters, prompts, shown, 10, 0)


def test_somebody_who_finds_all_alike_is_refused() -> None:
    same = pictures(1, 1).expand(1, 3, -1, -1, -1)
    with pytest.raises(ValueError, match="decided 0 of"):
        votes_of(FEW.raters(), population_prompts("train")[:1], same, 2, 0)


def test_features_hold_the_axes_of_pictures_and_the_words_of_prompts() -> None:
    towers, prompts = Measured(), population_prompts("train")[:3]
    shown = draw(prompts, np.random.default_rng(1))
    f, t = towers.encode_images(shown), towers.encode_prompts([str(p) for p in prompts])
    assert f.shape == t.shape == (3, WIDTH)
    for rows in (f, t):
        assert rows.norm(dim=1).allclose(torch.ones(3))
    axes = torch.stack([axis(measure(shown)) for axis in AXES.values()], 1).clamp(-LIMIT, LIMIT)
    assert (f[:, : len(AXES)] * LIMIT * len(AXES) ** 0.5).allclose(axes, atol=1e-5)
    assert len({tuple(row) for row in t.tolist()}) == 3
    texts = [str(p) for p in prompts]
    assert towers.score_tensor(shown, texts).tolist() == obeys(measure(shown), prompts).all.float().tolist()
    assert towers.score_tensor(shown, texts[1:] + texts[:1]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"population": {"tastes": ["dark"]}}, "tastes"),
        ({"population": {"held_out": 200}}, "held_out"),
        ({"population": {"temperature": 0.0}}, "temperature"),
        ({"population": {}, "per_prompt": 9}, "apart"),
        ({"population": {}, "per_prompt": 24, "ask": "likes"}, "pairs"),
    ],
)
def test_wrong_populations_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldConfig(**wrong | {"population": PopulationConfig(**wrong["population"])})


def _pixels(image: Any) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(image.read()))).transpose(2, 0, 1).copy()
