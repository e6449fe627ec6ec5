"""Losers that a model makes: pairs out of winners, kept by checkpoint, and rounds of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffalign.data.readers import read
from diffalign.data.records import BytesImage, DataError, Record
from diffalign.policy import Policy, load_policy
from diffalign.train.losers import LoserConfig, Round, choose_maker, make_losers, run_rounds, write_losers
from tests.policy.test_policy import shake
from tests.tiny import tiny_folder
from tests.train.runs import records

QUICK = LoserConfig(sampling_steps=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def policy(folder: Path) -> Policy:
    return load_policy(tiny_folder("sd3", folder), {"rank": 2})


def losers(found: list[Record]) -> list[bytes]:
    return [r.images[1].read() for r in found]


def counted(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of pictures asked of a policy."""
    asked: list[int] = []
    generate = policy.generate
    monkeypatch.setattr(policy, "generate", lambda p, s, **o: asked.append(len(p)) or generate(p, s, **o))
    return asked


def test_winners_of_every_kind_get_a_loser(policy: Policy, tmp_path: Path) -> None:
    images = tuple(BytesImage(r.images[0].read()) for r in records(4))
    winners = [
        Record(prompt="a red circle", images=images[:2], kind="pair", values=(0.0, 1.0)),
        Record(prompt="a red circle", images=images[:2], kind="pair", values=(0.5, 0.5)),
        Record(prompt="a blue star", images=images[:3], kind="labels", values=(1.0, 0.0, 1.0)),
        Record(prompt="x", images=images[:2], kind="ranking", values=(3.0, 1.0), prompts=("own", "other")),
    ]
    found = make_losers(policy, winners, QUICK, tmp_path, model="base")
    assert [r.prompt for r in found] == ["a red circle", "a blue star", "a blue star", "own"]
    assert [r.images[0] for r in found] == [images[1], images[0], images[2], images[0]]
    assert {r.values for r in found} == {(1.0, 0.0)}
    assert {r.models for r in found} == {("data", "base")}
    assert len(set(losers(found))) == 4, "also where winners share a prompt"
    with pytest.raises(DataError, match="ties and dislikes only"):
        make_losers(policy, winners[1:2], QUICK, tmp_path, model="base")


def test_each_checkpoint_makes_them_once(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, winners = counted(policy, monkeypatch), records(3)
    first = make_losers(policy, winners, QUICK, tmp_path, model="base")
    assert losers(make_losers(policy, winners, QUICK, tmp_path, model="base")) == losers(first)
    assert asked == [3]
    more = make_losers(policy, records(4), QUICK, tmp_path, model="base")
    assert losers(more)[:3] == losers(first)
    assert asked == [3, 1], "only the new one is made"
    shake(policy)
    moved = make_losers(policy, winners, QUICK, tmp_path, model="later")
    assert asked == [3, 1, 3]
    assert not set(losers(moved)) & set(losers(first))
    policy.set_reference("off")
    with policy.reference():
        old = make_losers(policy, winners, QUICK, tmp_path, model="base")
    assert losers(old) == losers(first)
    other = LoserConfig(sampling_steps=1, guidance=2.0)
    assert losers(make_losers(policy, winners, other, tmp_path, model="later")) != losers(moved)


def test_several_losers_of_a_winner(policy: Policy, tmp_path: Path) -> None:
    two = LoserConfig(sampling_steps=1, per_winner=2)
    found = make_losers(policy, records(2), two, tmp_path, model="base")
    assert [r.prompt for r in found[::2]] == [r.prompt for r in found[1::2]]
    assert len(set(losers(found))) == 4
    back = list(read(write_losers(found, tmp_path / "pairs")))
    assert losers(back) == losers(found)
    assert [r.values for r in back] == [r.values for r in found]


@pytest.mark.parametrize("name", ["spin", "seppo"])
def test_rounds(name: str, policy: Policy, tmp_path: Path) -> None:
    opened: list[str | None] = []
    trained: list[tuple[Round, list[str]]] = []

    def open_policy(lora: str | None) -> Policy:
        opened.append(lora)
        return policy

    def train(one: Round, pairs: list[Record]) -> str:
        trained.append((one, [r.models[1] for r in pairs]))
        return f"lora{one.number}"

    config = LoserConfig(name=name, sampling_steps=1, pool=2, seed=1)
    assert run_rounds(config, records(2), open_policy, train, tmp_path) == ["lora1", "lora2", "lora3"]
    assert [r.start for r, _ in trained] == [None, "lora1", "lora2"]
    assert [r.maker for r, _ in trained] == opened, "who makes the losers is the reference"
    assert all(models == [r.maker or "base"] * 2 for r, models in trained)
    if name == "spin":
        assert opened == [None, "lora1", "lora2"]


def test_seppo_draws_from_the_latest() -> None:
    made = [f"lora{i}" for i in range(5)]
    drawn = {choose_maker(LoserConfig(name="seppo", pool=3, seed=s), made) for s in range(30)}
    assert drawn == {"lora2", "lora3", "lora4"}
    all_of_them = {choose_maker(LoserConfig(name="seppo", pool=9, seed=s), made) for s in range(60)}
    assert all_of_them == {None, *made}
    with pytest.raises(ValueError, match=r"losers\.pool is 0"):
        LoserConfig(pool=0)
