"""The packaged recipes."""

from __future__ import annotations

import pytest

from diffalign.recipes import recipes
from diffalign.train.align import load_any, plan_only

NAMES = [name for name, _ in recipes()]


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_understood_and_says_what_it_is(name: str) -> None:
    config = load_any(f"training/recipes/{name}.yaml")
    assert config.output == f"outputs/{name}"
    about = dict(recipes())[name]
    assert 20 < len(about) <= 110


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd15-lpo", "sdxl-lpo", "sd35-nft"])
def test_an_online_recipe_is_planned_without_its_weights(name: str) -> None:
    lines = "\n".join(plan_only(f"training/recipes/{name}.yaml", []))
    assert "not here" in lines
    assert "pictures of" in lines
    assert "judged by" in lines
