"""Choosing what to vote on: each way takes what it says, and none invents scores that are missing."""

from pathlib import Path

import numpy as np
import pytest

from diffalign.votes.choose import CHOOSERS, Pool, Routed, candidates, chooser, entropy, pool_of
from diffalign.votes.rows import VoteError
from tests.votes.helpers import results

RNG = np.random.default_rng(0)


def pool(gaps: list[list[float]], prompt: list[int] | None = None, margin: list[float] | None = None) -> Pool:
    return Pool(
        prompt=np.array(prompt or range(len(gaps))),
        gaps=np.array(gaps),
        margin=None if margin is None else np.array(margin),
    )


def asked(name: str, pool: Pool, n: int) -> list[int]:
    return chooser(name).choose(pool, n, np.random.default_rng(0)).people.tolist()


def test_random_takes_every_pair_once() -> None:
    assert sorted(asked("random", pool([[0.0]] * 5), 9)) == [0, 1, 2, 3, 4]
    assert len(asked("random", pool([[0.0]] * 5), 3)) == 3


def test_margin_takes_the_smallest_either_way() -> None:
    assert asked("margin", pool([[]] * 4, margin=[0.5, -0.1, 0.3, -2]), 2) == [1, 2]


def test_disagreement_takes_what_scorers_contradict() -> None:
    assert asked("disagreement", pool([[3, -3], [3, 3], [1, -1], [0, 0]]), 2) == [0, 2]


def test_entropy_takes_open_pairs_and_every_prompt_before_one_again() -> None:
    gaps = [[0.0], [0.1], [2.0], [3.0]]
    assert asked("entropy", pool(gaps, [0, 0, 1, 1]), 3) == [0, 2, 1]
    assert asked("entropy", pool(gaps, [0, 1, 2, 3]), 3) == [0, 1, 2]


def test_routed_leaves_the_sure_ones_to_the_scorer() -> None:
    found = Routed(sure=0.9).choose(pool([[4.0], [0.5], [-4.0], [0.0]]), 9, RNG)
    assert found.people.tolist() == [3, 1]
    assert {i: round(p, 2) for i, p in found.scorer.items()} == {0: 0.98, 2: 0.02}


def test_entropy_is_largest_at_one_half() -> None:
    assert entropy(np.array([0.5, 0.0, 1.0])) == pytest.approx([np.log(2), 0, 0], abs=1e-9)


@pytest.mark.parametrize("name", sorted(set(CHOOSERS) - {"random"}))
def test_missing_scores_are_an_error(name: str) -> None:
    with pytest.raises(VoteError, match="results"):
        asked(name, pool([[], []]), 1)


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(VoteError, match="no way to choose is called 'best'; there are random, margin"):
        chooser("best")


def test_candidates_and_their_pool_come_of_results(tmp_path: Path) -> None:
    rows = results(tmp_path, 3, ("base", "a", "b"), seeds=2, scores=("x", "implicit"))
    same = [r.model_copy(update={"sha256": rows[0].sha256}) if r.model == "a" else r for r in rows]
    found = candidates(rows)
    assert len(found) == 3 * 2 * 3
    assert len(candidates(same)) == 3 * 2 * 3 - 1
    assert (found[0].a.model, found[0].b.model) == ("base", "a")
    made = pool_of(found)
    assert made.gaps.shape == (18, 1)
    assert (made.gaps**2).mean() == pytest.approx(4)
    gaps = [c.a.scores["implicit"] - c.b.scores["implicit"] for c in found]
    assert made.margin == pytest.approx(np.array(gaps))
    assert pool_of(candidates(results(tmp_path / "none"))).gaps.shape == (4, 0)
