"""The study of people: rendered pictures stand for a model that serves people, and for one that does not."""

from __future__ import annotations

import colorsys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from diffalign.config import load
from diffalign.evaluate.generate import Sampling
from diffalign.personalize.study import PipelineStudy, Study, StudyOptions
from diffalign.personalize.study_figures import Jury, figures, make_jury
from diffalign.personalize.study_page import as_confusion, as_curve, page, write_page
from diffalign.personalize.study_pictures import Shelf, Studio
from diffalign.personalize.study_run import StudyFile
from diffalign.personalize.study_words import said
from diffalign.train.align import load_recipe
from diffalign.world.grammar import HUES, parse
from diffalign.world.oracle import measure
from diffalign.world.population import PopulationConfig, population_prompts, taste_weights
from diffalign.world.raters import AXES
from diffalign.world.shapes import draw
from tests.tiny import tiny_folder

PEOPLE = PopulationConfig(tastes=("dark", "light"), people=12, held_out=4, individual=0.0)
PROMPTS = tuple(str(p) for p in population_prompts("heldout")[:2])
RECIPES = Path(__file__).parents[2] / "training" / "people.yaml"


def flat(prompt: str, shade: float) -> torch.Tensor:
    """A disc in the colour of ``prompt``, as light as ``shade`` says, on grey."""
    hue = HUES[prompt.split()[1]] / 360
    colour = torch.tensor(colorsys.hsv_to_rgb(hue, 0.8, shade))
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    inside = ((x - 31.5) ** 2 + (y - 31.5) ** 2) < 18**2
    return (torch.where(inside, colour[:, None, None], torch.full((3, 1, 1), 0.5)) * 255).round().byte()


def shown(shades: list[float], prompts: int = 2) -> torch.Tensor:
    """(U, P, 3, 64, 64), each row in a shade of its own."""
    return torch.stack([torch.stack([flat(p, s) for p in PROMPTS[:prompts]]) for s in shades])


@pytest.fixture(scope="module")
def jury() -> Jury:
    base = torch.stack([torch.stack([flat(p, s) for s in (0.75, 0.65, 0.85, 0.75)]) for p in PROMPTS])
    return make_jury(PEOPLE, PROMPTS, base)


def pictures(served: bool) -> dict[str, torch.Tensor]:
    """Of a model that makes dark pictures for dark tastes, or the same ones for all."""
    ours = [0.55, 0.95, 0.55, 0.95] if served else [0.75] * 4
    base = torch.stack([torch.stack([flat(p, s) for s in (0.75, 0.65, 0.85, 0.75)]) for p in PROMPTS])
    few = [0.75, 0.75, *ours[2:]]
    return {
        "base": base, "population": shown([0.75])[0], "votes-4": shown(ours), "votes-1": shown(few, 1),
        "asked-1": shown(ours, 1), "asked-4": shown(ours),
        "seen": shown(ours, 1), "nearest": shown(ours, 1),
        "mixed-person-008-person-009": shown([0.6, 0.7, 0.8] if served else [0.8, 0.7, 0.75]),
    }  # fmt: skip


def found(jury: Jury, served: bool) -> dict[str, Any]:
    some = pictures(served)
    if not served:  # a judge must tell some pictures apart
        some["votes-4"] = some["votes-4"].clone()
        some["votes-4"][0, 0] = flat(PROMPTS[0], 0.8)
    return figures(jury, some, (1, 4), 4)


def test_a_model_that_serves_people_wins_and_one_that_is_blind_does_not(jury: Jury) -> None:
    good, blind = found(jury, served=True), found(jury, served=False)
    name, swap = "unseen", "unseen, own against other tastes' pictures"
    assert good["rates"][name]["value"] == good["rates"][swap]["value"] == 1
    assert good["tastes"]["top1"]["value"] == 1
    assert 0.3 < blind["rates"][swap]["value"] < 0.6
    assert good["rates"]["user-blind, own against other tastes' pictures"]["value"] == 0.5
    assert good["curve"]["rates"][0]["value"] < good["curve"]["rates"][1]["value"]
    assert good["interpolation"]["mixed-person-008-person-009"]["monotone"]
    assert not blind["interpolation"]["mixed-person-008-person-009"]["monotone"]


def test_the_page_says_what_was_asked_for_and_whether_it_was_met(jury: Jury, tmp_path: Path) -> None:
    of = found(jury, served=True) | {
        "cost": {"everybody": 60.0}, "population": vars(PEOPLE), "pictures": 2, "amounts": [0.0, 0.5, 1.0],
    }  # fmt: skip
    text = page({"unet": of}, "people_study")
    assert ">= 0.76: met" in text
    assert "pairs asked for" in text
    assert "pairs asked for" not in page(
        {"unet": {k: v for k, v in of.items() if k != "asked"}}, "people_study"
    )
    assert "guidance of their own" not in text
    assert "guidance of their own, of weight 2." in page(
        {"unet": of | {"user_guidance": 2.0}}, "people_study"
    )
    of["rates"]["unseen"]["value"] = 0.7
    assert ">= 0.76: missed" in page({"unet": of}, "people_study")
    write_page({"unet": of}, tmp_path / "study")
    assert {f.name for f in tmp_path.iterdir()} == {
        "study.md", "study.json", "study_unet_tastes.png", "study_votes.png",
    }  # fmt: skip
    assert as_curve(of["curve"]).votes == (1, 4)
    assert as_confusion(of["tastes"]).names == PEOPLE.tastes


def test_what_a_prompt_can_say_of_a_taste() -> None:
    """Without backgrounds the baseline said nothing at all to people who like warm or cool pictures."""
    assert said("a red circle", "large") == "a large red circle"
    assert said("a red circle", "warm") == "a red circle on a yellow background"
    assert said("a blue star", "warm") == "a blue star on a red background"
    assert said("a blue star", "cool") == "a blue star on a cyan background"
    for taste, sign in (("warm", 1), ("cool", -1), ("large", 1), ("small", -1)):
        (axis,) = taste_weights(taste)
        pictures = draw([parse(said(p, taste)) for p in PROMPTS], np.random.default_rng(0))
        assert (sign * AXES[axis](measure(pictures))).min() > 0
    with pytest.raises(ValueError, match="no prompt says 'dark'"):
        said("a red circle", "dark")


def test_pictures_are_made_once_and_others_are_not_taken_for_them(tmp_path: Path) -> None:
    shelf, made = Shelf(folder=tmp_path, prompts=("a red circle",), sampling=Sampling()), []

    def make() -> torch.Tensor:
        made.append(1)
        return torch.zeros(1, 3, 8, 8, dtype=torch.uint8)

    first, second = shelf.kept("base", make), shelf.kept("base", make)
    assert torch.equal(first, second)
    assert len(made) == 1
    with pytest.raises(ValueError, match="other prompts"):
        replace(shelf, sampling=Sampling(steps=5)).kept("base", make)
    with pytest.raises(ValueError, match="another sampler"):
        replace(shelf, user_guidance=2.0).kept("base", make)


def test_the_recipes_of_the_study_are_whole() -> None:
    from diffalign.league.config import merged

    file = load(StudyFile, RECIPES)
    assert set(file.pipelines) == {"unet", "dit"}
    for name, of in file.pipelines.items():
        recipes = PipelineStudy(everybody=merged(file.common, of.everybody), single=of.single, lora=of.lora)
        study = Study(name=name, recipes=recipes, options=StudyOptions(), root=Path("nowhere"))
        assert len(study.prompts) == study.options.prompts
        people = load_recipe(merged(recipes.everybody, recipes.single)).people
        assert people is not None
        assert people.only
        assert len(study.opposites()) == 2


def test_votes_are_there_also_where_no_picture_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(policy: Any, prompts: Any, seeds: Any, *rest: Any) -> torch.Tensor:
        shades = torch.linspace(0.5, 0.95, len(seeds)).tolist()
        return torch.stack([torch.stack([flat(p, s) for s in shades]) for p in prompts])

    monkeypatch.setattr("diffalign.evaluate.generate.generate", drawn)
    recipe = {
        "policy": {"model": tiny_folder("sd", tmp_path)},
        "objective": {"name": "dpo"},
        "data": {
            "cache": str(tmp_path / "cache"),
            "world": {
                "per_prompt": 4,
                "population": {
                    "tastes": ["dark", "light"],
                    "people": 4,
                    "held_out": 2,
                    "votes": 3,
                    "apart": 2,
                },
            },
        },
    }
    recipes = PipelineStudy(everybody=recipe, single={})
    study = Study(name="tiny", recipes=recipes, options=StudyOptions(), root=tmp_path / "runs")
    records = study.votes(["person-003"])
    assert [r.rater for r in records] == ["person-003"] * 3


@pytest.mark.parametrize("weight", [None, 2.0])
def test_people_have_the_guidance_that_the_study_gives_them_and_nobody_has_none(
    tmp_path: Path, weight: float | None
) -> None:
    seen: list[float | None] = []
    attached = SimpleNamespace(adapter=SimpleNamespace(branch=SimpleNamespace(scale=1.0)), user_guidance=None)

    def nobody() -> None:
        attached.condition, attached.user_guidance = None, None

    def generate(prompts: list[str], seeds: Any, *, steps: int, guidance: float) -> torch.Tensor:
        seen.append(attached.user_guidance)
        return torch.zeros(len(prompts), 3, 8, 8)

    attached.nobody = nobody
    shelf = Shelf(folder=tmp_path, prompts=PROMPTS, sampling=Sampling(), user_guidance=weight)
    studio = Studio(policy=SimpleNamespace(generate=generate), attached=attached, shelf=shelf)  # type: ignore[arg-type]
    assert studio.people("votes-4", torch.zeros(3, 2, 4)).shape == (3, 2, 3, 8, 8)
    studio.everybody()
    assert seen == [weight, None]
