"""Training with directions: every pair is labelled for the mixture of scorers that its seed draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffalign.data.cache import CachedSet, CacheReport, Unit
from diffalign.data.loader import LoaderOptions
from diffalign.data.records import DataError
from diffalign.diffusion.corrupt import draw_seed
from diffalign.personalize import attach
from diffalign.personalize.encoders.direction import DirectionOptions
from diffalign.train.align import align, load_recipe
from diffalign.train.directions import DirectedLoader, Directions
from diffalign.train.people import DirectionConfig, PeopleConfig
from diffalign.train.trainer import Trainer
from tests.personalize.helpers import float_pipeline, latents
from tests.train.people_runs import DIRECTED, ENCODER, directed, scored
from tests.train.runs import records


def directions(**options: Any) -> Directions:
    encoder = DirectionOptions(scorers=("dark", "large"), tokens=4, width=24)
    people = PeopleConfig(encoder=encoder, directions=DirectionConfig(**options))
    return Directions(people, scored())


def loader(found: Directions, ties: Any = "drop", rank: int = 0, world: int = 1) -> DirectedLoader:
    units = tuple(
        Unit(sample=i, values=(0.5, 0.5), latents=((f"a{i}", f"b{i}"),), prompts=("p", "p"), undecided=True)
        for i in range(8)
    )
    report = CacheReport()
    data = CachedSet(
        kind="pair", units=units, latents=None, prompts=None, empty_prompt="", report=report,
        captions=frozenset(),
    )  # fmt: skip
    return DirectedLoader(
        data, lambda rows: {}, LoaderOptions(batch=4, ties=ties), found, rank=rank, world=world
    )


def labels(made: DirectedLoader) -> list[tuple[int, str, int, float, float]]:
    """Position, latent, role, soft label and weight of the rows of one step."""
    places = enumerate(made.next_places())
    rows = [row for g, (visit, unit) in places for row in made._rows(g, visit, unit)]
    return [(r.sample, r.latent, r.role, r.soft, r.weight) for r in rows]


def test_pairs_are_labelled_for_their_direction_and_the_winner_comes_first() -> None:
    dark, large = (labels(loader(directions(among=[f"{name}=1"]))) for name in ("dark", "large"))
    assert {(latent[0], role) for _, latent, role, _, _ in dark} == {("a", 1), ("b", -1)}
    assert {(latent[0], role) for _, latent, role, _, _ in large} == {("b", 1), ("a", -1)}
    assert [row[1][0] for row in large[:2]] == ["b", "a"]
    assert all(weight == 1 for *_, weight in dark)


def test_draws_are_by_the_seed_of_a_comparison_and_the_same_on_all_processes() -> None:
    found = directions()
    made = loader(found)
    for visit, unit in made.next_places():
        seed = draw_seed(0, visit, unit.sample)
        lead = found.leads([unit.sample], found.drawn([seed]))
        assert made.labelled(visit, unit).values[0] == float(lead[0] > 0)
    parts = [labels(loader(directions(), rank=rank, world=2)) for rank in (0, 1)]
    assert labels(made) == parts[0] + parts[1]
    every = found.drawn([draw_seed(0, 0, i) for i in range(400)])
    torch.testing.assert_close(every.norm(dim=1), torch.ones(400))
    assert (every >= 0).all()
    assert 0.15 < float((every.max(1).values == 1).float().mean()) < 0.35, "the share of single scorers"
    assert (directions(signed=True).drawn(range(50)) < 0).any()


def test_ties_weigh_nothing_or_are_kept_and_labels_may_be_soft() -> None:
    wide = {"among": ["dark=1"], "tie": 1e6}
    assert {row[3:] for row in labels(loader(directions(**wide)))} == {(0.5, 0.0)}
    assert {row[3:] for row in labels(loader(directions(**wide), ties="soft"))} == {(0.5, 1.0)}
    soft = directions(among=["dark=1"], temperature=2.0)
    gap = float(soft.gaps[3, 0])
    assert soft.value(3, 0) == pytest.approx(1 / (1 + torch.tensor(-gap / 2).exp().item()))
    assert float(soft.gaps[:, 0].square().mean()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"people": {"encoder": {**ENCODER, "scorers": []}}}, "scorers"),
        ({"people": DIRECTED | {"directions": {"among": ["size=1"]}}}, "does not name one of dark, large"),
        ({"people": DIRECTED | {"directions": {"single": 2}}}, r"single is 2"),
        ({"people": DIRECTED | {"dispersion": 0.1}}, "directions are no people"),
        ({"people": {"encoder": {"name": "table", "width": 24}, "directions": {}}}, "encoder direction"),
        ({"objective": {"name": "kto"}}, "directions label pairs anew"),
        ({"data": {"path": "x", "reverse": True}}, "negate the directions"),
    ],
)
def test_what_does_not_go_with_directions_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(directed(tmp_path, tmp_path, **changes))


def test_data_without_scores_are_refused() -> None:
    people = PeopleConfig(encoder=DirectionOptions(scorers=("dark", "large")))
    with pytest.raises(DataError, match=r"no scores called 'dark' .*diffalign score"):
        Directions(people, records())


@pytest.mark.slow
def test_a_cut_short_run_goes_on_exactly_and_its_export_takes_directions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = directed(tmp_path, tmp_path / "whole", steps=5, checkpoint_every=3)
    options["objective"] = {"name": "own_other", "pair": {"name": "dpo", "beta": 500.0}}
    whole = align(options, records=scored())
    clip = Trainer._clip

    def broken(self: Trainer) -> torch.Tensor:
        if self.step == 4:
            raise KeyboardInterrupt
        return clip(self)

    monkeypatch.setattr(Trainer, "_clip", broken)
    with pytest.raises(KeyboardInterrupt):
        align(options | {"output": str(tmp_path / "cut")}, records=scored())
    monkeypatch.setattr(Trainer, "_clip", clip)
    again = align(options, records=scored(), resume=tmp_path / "cut")
    part = "checkpoints/step-000005/state.safetensors"
    one, other = load_file(whole.dir / part), load_file(again.dir / part)
    assert set(one) == set(other)
    assert any(name.startswith("policy/user_encoder.net") for name in one)
    assert all(torch.equal(one[k], other[k]) for k in one)

    pipe = float_pipeline("sd")
    attached = attach(pipe, whole.dir / "export" / "users")
    dark, large = (latents(attached.direct(f"{name}=1").pipe) for name in ("dark", "large"))
    assert not torch.equal(dark, large)
    with pytest.raises(ValueError, match="does not name one of dark, large"):
        attached.direct("warm=1")
