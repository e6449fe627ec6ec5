"""Which pictures are made: every prompt once an epoch, wherever and in how many processes."""

from __future__ import annotations

from collections import Counter

import pytest

from diffalign.online.blocks import GroupConfig
from diffalign.online.groups import Groups, share_of

TEXTS = [f"prompt {i}" for i in range(10)]


def groups(seed: int = 0, **options: object) -> Groups:
    return Groups(TEXTS, GroupConfig(**{"prompts": 4, "images": 3} | options), seed)


def test_every_prompt_comes_once_an_epoch_in_a_new_order() -> None:
    numbers = [n for i in range(5) for n in groups().numbers(i)]  # 20 places are two epochs
    assert Counter(numbers[:10]) == Counter(numbers[10:]) == Counter(range(10))
    assert numbers[:10] != numbers[10:]
    assert numbers != [n for i in range(5) for n in groups(seed=1).numbers(i)]


def test_pictures_of_a_prompt_are_adjacent_and_have_seeds_of_their_own() -> None:
    planned = groups().planned(3)
    assert [p.group for p in planned] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert [p.number for p in planned[::3]] == groups().numbers(3)
    assert all(p.prompt == TEXTS[p.number] for p in planned)
    everything = [p.seed for i in range(4) for p in groups().planned(i)]
    assert len(set(everything)) == len(everything)
    assert planned == groups().planned(3)
    assert {p.seed for p in planned}.isdisjoint(p.seed for p in groups(seed=1).planned(3))


@pytest.mark.parametrize("same", [False, True])
def test_first_latents_of_a_prompt(same: bool) -> None:
    planned = groups(same_start=same).planned(0)
    starts = [p.start for p in planned]
    assert len(set(starts)) == (4 if same else 12)
    assert same or starts == [p.seed for p in planned]


def test_the_reference_makes_its_share_rounded_down() -> None:
    planned = groups(images=4, reference_share=0.6).planned(0)
    assert [p.of_reference for p in planned] == [True, True, False, False] * 4


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_processes_share_the_pictures_of_one(world: int) -> None:
    every = groups(prompts=4).planned(0)
    shared = [i for rank in range(world) for i in share_of(len(every), rank, world)]
    assert shared == list(range(12))
    assert {len(share_of(12, rank, world)) for rank in range(world)} == {12 // world}


def test_a_prompt_is_asked_once_for_each_reward() -> None:
    own = Groups(TEXTS, GroupConfig(prompts=4, images=2), 0, ["<a>", "<b>"])
    planned = own.planned(1)
    assert [p.condition for p in planned] == [0, 0, 1, 1] * 2
    assert [p.prompt for p in planned] == [TEXTS[n] for n in own.numbers(1) for _ in range(4)]
    assert [p.asked for p in planned[1:3]] == [f"<a> {planned[0].prompt}", f"<b> {planned[0].prompt}"]
    assert len({p.number for p in planned}) == 4  # the words make other prompts of it
    assert len({p.seed for p in planned}) == 8
    assert sorted(n for i in range(5) for n in own.numbers(i)) == list(range(10))
    assert groups().planned(0)[0].asked == groups().planned(0)[0].prompt


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"groups\.prompts is 11, and there are 10 prompts: lower it"):
        groups(prompts=11)
