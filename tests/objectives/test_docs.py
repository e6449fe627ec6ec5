"""The page of objectives names everything that is registered."""

from __future__ import annotations

from pathlib import Path

from diffalign.diffusion.corrupt import corruptors
from diffalign.diffusion.spaces import spaces
from diffalign.objectives import names


def test_the_page_names_every_objective_corruptor_and_space() -> None:
    page = Path("docs/objectives.md").read_text()
    every = [*names(), *corruptors.names(), *spaces.names()]
    assert [name for name in every if f"`{name}`" not in page] == []
