"""MPS under conditions, and PAL, GPM and NIMA on frozen towers, learn what was planted."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import scorers
from scorers.digests import weights_digest
from scorers.fresh import to_train
from scorers.gpm import GPM, GPMOptions
from scorers.heads import GpmLearner, NimaLearner, PalLearner, shares
from scorers.learners import ConditionLearner, learner_for
from scorers.mps import Mps, MpsModel, MpsOptions
from scorers.nima import NIMA, NIMAOptions
from scorers.pal import Pal
from scorers.pal_heads import PalHead, PalOptions
from scorers.pickscore import PickScore
from scorers.train import PRESETS, TrainOptions, Vote, evaluate, train_scorer
from scorers.votes import Rating
from tests.scorers.conftest import tiny_clip, tiny_tokenizer
from tests.scorers.test_train import bright_votes

OPTIONS = TrainOptions(
    loss="bradley-terry", steps=60, batch=32, learning_rate=1e-2, head_rate=1e-2, warmup=0, weight_decay=0.0,
    eval_every=20, balance_prompts=False,
)  # fmt: skip


def split_votes(n: int, seed: int) -> list[Vote]:
    """Two people: a likes it bright, b dark."""
    votes = bright_votes(n, seed)
    return [
        v._replace(user="ab"[i % 2], label=v.label if i % 2 == 0 else 1 - v.label)
        for i, v in enumerate(votes)
    ]


def test_pal_learns_people_on_features_made_once(scorer: PickScore) -> None:
    torch.manual_seed(0)
    pal = Pal(scorer, PalHead(PalOptions(users=("a", "b"), feature=16, width=16)))
    learner = learner_for(pal)
    assert isinstance(learner, PalLearner)
    votes = split_votes(96, 0)
    (first, *_) = learner.prepare(votes)
    assert first[0].shape == (16,)
    torch.testing.assert_close(learner.logit([first]), learner.logit(votes[:1]), rtol=1e-4, atol=1e-4)
    before = scorer.clip.visual_projection.weight.clone()
    run = train_scorer(pal, votes, split_votes(48, 1), OPTIONS)
    assert run.validation.pairs_micro > 0.75
    assert pal.head.logit_scale <= math.log(100) + 1e-6
    assert torch.equal(scorer.clip.visual_projection.weight, before)
    a, b = pal.head.mixture(["a", "b"]).argmax(1).tolist()
    assert a != b


def test_gpm_and_nima_learn(scorer: PickScore) -> None:
    torch.manual_seed(0)
    gpm, nima = GPM.create(scorer, GPMOptions(hidden=16)), NIMA.create(scorer, NIMAOptions(dropout=0.0))
    assert isinstance(learner_for(gpm), GpmLearner)
    assert isinstance(learner_for(nima), NimaLearner)
    votes, validation = bright_votes(96, 0), bright_votes(48, 1)
    assert train_scorer(gpm, votes, validation, OPTIONS).validation.pairs_micro > 0.8
    marks = [Rating(v.first, v.prompt, (1 + 9 * v.label,)) for v in votes]
    rated = replace(OPTIONS, loss="emd", keep="loss", learning_rate=0.1)
    assert train_scorer(nima, marks, validation, rated).validation.pairs_micro > 0.7
    with pytest.raises(ValueError, match="cannot learn by the loss 'listwise'"):
        train_scorer(gpm, votes, validation, replace(OPTIONS, loss="listwise"))
    with pytest.raises(ValueError, match="emd learns from ratings"):
        train_scorer(nima, votes, validation, rated)


def test_marks_between_two_bins() -> None:
    assert shares((5.25,), 10).tolist() == [0, 0, 0, 0, 0.75, 0.25, 0, 0, 0, 0]
    assert shares((10.0,), 10)[9] == 1
    assert shares((0.5, 0.5), 2).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="10 shares or a mean from 1 to 10"):
        shares((11.0,), 10)


@pytest.mark.slow
def test_mps_learns_opposite_conditions() -> None:
    torch.manual_seed(0)
    options = MpsOptions(
        conditions={"up": "aaa", "down": "bbb"},
        threshold=0.0,
        read_condition=True,
        layers=1,
        heads=2,
        dim_head=8,
        mult=1,
    )
    mps = Mps(MpsModel(tiny_clip(), options), tiny_tokenizer(), options)
    assert isinstance(learner_for(mps), ConditionLearner)

    def votes(n: int, seed: int) -> list[Vote]:
        rows = bright_votes(n, seed)
        return [
            v._replace(dim=("", "down")[i % 2], label=v.label if i % 2 == 0 else 1 - v.label)
            for i, v in enumerate(rows)
        ]

    run = train_scorer(
        mps, votes(128, 0), votes(64, 1), replace(OPTIONS, loss="pickscore", learning_rate=2e-3, steps=150)
    )
    assert run.validation.pairs_micro > 0.8
    assert evaluate(mps, [v._replace(dim="up") for v in bright_votes(32, 2)]).pairs_micro > 0.8


def test_new_heads_start_from_a_tower_and_reload(folder: Path, tmp_path: Path) -> None:
    for name in ("pal", "gpm", "nima"):
        made = to_train(name, folder, split_votes(4, 0))
        made.save(tmp_path / name)
        again = scorers.load(name, tmp_path / name)
        assert type(again) is type(made)
        assert type(to_train(name, tmp_path / name)) is type(made)
        assert PRESETS[name].loss in learner_for(again).losses
    assert made.head.options.bins == 10
    assert to_train("pal", folder, split_votes(4, 0)).head.options.users == ("a", "b")


@pytest.mark.parametrize("name", ["gpm", "nima", "pal"])
def test_a_new_head_starts_from_the_same_weights_again(name: str, folder: Path) -> None:
    first, again, other = (weights_digest(to_train(name, folder, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other
