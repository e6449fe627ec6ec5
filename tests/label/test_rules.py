"""Each rule by hand on one prompt, and what each refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffalign.data import DataError
from diffalign.label.rules import Candidates, RuleOptions, rules

SCORES = [0.0, 3.0, -1.0, 1.0, -3.0, 0.5]


def pairs(
    rule: str, *scores: list[float], features: list[list[float]] | None = None, **options: Any
) -> list[tuple[int, int]]:
    f = None if features is None else np.array(features)
    return rules.get(rule)(Candidates(prompt="p", z=np.array(scores), features=f), RuleOptions(**options))


def test_all_rules_are_tried_here() -> None:
    assert rules.names() == sorted(
        [
            "best_worst",
            "mean_minus_2sd",
            "divpo",
            "rejection",
            "feature_spread",
            "rank_then_sift",
            "pareto",
            "relabel",
        ]
    )


def test_best_worst_takes_the_mean_of_the_scorers() -> None:
    assert pairs("best_worst", SCORES) == [(1, 4)]
    assert pairs("best_worst", [2.0, 0.0, 1.0], [0.0, 3.0, -2.0]) == [(1, 2)]
    assert pairs("best_worst", [1.0, 1.0]) == []


def test_mean_minus_2sd_is_not_always_the_worst() -> None:
    scores = [1.0, -10.0, -6.0, *[0.0] * 20]  # mean -.65, s.d. 2.35: two below it is -5.35
    assert pairs("mean_minus_2sd", scores) == [(0, 2)]
    assert pairs("mean_minus_2sd", scores, losers="below") == [(0, 1), (0, 2)]
    assert pairs("mean_minus_2sd", [1.0, 0.0, -1.0, 0.5], losers="below") == []
    assert pairs("mean_minus_2sd", SCORES, deviations=0.5) == [(1, 2)]


def test_divpo_takes_rare_good_against_common_bad() -> None:
    features = [[0.0], [0.1], [5.0], [0.2], [-9.0], [0.0]]
    # good: 1, 3, 5 of which 1 and 5 lie among the others; bad: 0, 2, 4 of which 0 lies in the middle
    assert pairs("divpo", SCORES, features=features) == [(3, 0)]
    assert pairs("divpo", SCORES, features=features, share=0.2) == [(1, 4)]


def test_rejection_accepts_the_good_and_depends_on_the_prompt_alone() -> None:
    cold = pairs("rejection", SCORES, temperature=1e-3)
    assert cold == []  # the best alone
    hot = pairs("rejection", SCORES, temperature=1e6)
    assert len(hot) == 3
    assert sorted(i for pair in hot for i in pair) == list(range(6))
    assert all(SCORES[w] > SCORES[lost] for w, lost in hot)
    assert hot == pairs("rejection", SCORES, temperature=1e6)
    assert any(pairs("rejection", SCORES, temperature=1e6, seed=s) != hot for s in range(1, 4))
    many = [pairs("rejection", np.random.default_rng(i).normal(size=40).tolist(), seed=i) for i in range(30)]
    assert 1 < np.mean([len(m) for m in many]) < 3  # about 9 % of a normal sample, and the best


def test_feature_spread_takes_losers_far_from_each_other() -> None:
    features = [[0.0, 0.1], [0.0, 0.0], [0.2, 0.0], [9.0, 0.0], [0.0, 8.0], [9.1, 0.1]]
    assert pairs("feature_spread", SCORES, features=features, negatives=2) == [(1, 5), (1, 4)]
    assert len(pairs("feature_spread", SCORES, features=features, negatives=99)) == 5


def test_rank_then_sift_keeps_what_every_scorer_confirms() -> None:
    one, two = [4.0, 3.0, 2.0, 1.0], [4.0, 0.0, 2.5, 1.0]
    assert pairs("rank_then_sift", one, one) == [(0, 3), (1, 2)]
    assert pairs("rank_then_sift", one, two) == [(0, 3)]
    assert pairs("rank_then_sift", one, one, min_gap=1.5) == [(0, 3)]
    assert pairs("rank_then_sift", [1.0, 1.0]) == []


def test_pareto_takes_the_first_front_against_the_last() -> None:
    assert pairs("pareto", [3.0, 1.0, 0.0, 1.5], [1.0, 3.0, 0.0, 0.5]) == [(0, 2), (1, 2)]
    assert pairs("pareto", [3.0, 1.0], [1.0, 3.0]) == []
    assert pairs("pareto", [3.0, 1.0, 2.0], [1.0, 3.0, 0.0]) == [(0, 2)]


def test_relabel_gives_a_pair_the_scorers_label() -> None:
    assert pairs("relabel", [0.0, 1.0]) == [(1, 0)]
    assert pairs("relabel", [1.0, 1.0]) == []
    with pytest.raises(DataError, match="relabel is for pairs, and these are 6 images"):
        pairs("relabel", SCORES)


@pytest.mark.parametrize("rule", rules.names())
def test_a_single_image_is_refused(rule: str) -> None:
    with pytest.raises(DataError, match="'p': a ranking of one item"):
        pairs(rule, [1.0], features=[[1.0]])


@pytest.mark.parametrize("rule", ["divpo", "feature_spread"])
def test_features_that_are_not_there_are_named(rule: str) -> None:
    with pytest.raises(DataError, match="compares features, and there are none"):
        pairs(rule, SCORES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.6}, "rule.share"),
        ({"temperature": 0.0}, "rule.temperature"),
        ({"negatives": 0}, "rule.negatives"),
        ({"min_gap": -1.0}, "rule.min_gap"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RuleOptions(**options)
