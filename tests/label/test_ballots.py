"""Records of every kind as what scorers learn from, and training from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffalign.data.records import BytesImage, DataError, Record
from diffalign.data.writers import write
from diffalign.label.ballots import ballots
from diffalign.label.train import options_for, train_on
from scorers.votes import Ranking, Rating, Vote
from tests.label.test_many import png


def image(level: int) -> BytesImage:
    return BytesImage(png(level, (64, 64)))


A, B = image(10), image(200)


def test_each_kind_by_hand() -> None:
    pair = Record(prompt="p", images=(A, B), kind="pair", values=(0.0, 1.0), soft=(0.2, 0.8), rater="u",
                  judged={"detail": (2.0, 1.0)})  # fmt: skip
    ranking = Record(prompt="q", images=(A, B), kind="ranking", values=(3.0, 1.0))
    likes = [
        Record(prompt="r", images=(i,), kind="labels", values=(v,)) for i, v in ((A, 1.0), (B, 0.0), (B, 0.5))
    ]
    assert ballots([pair, ranking, *likes], dims=["detail", "other"]) == [
        Vote(A, B, "p", 0.2, "u"),
        Vote(A, B, "p", 1.0, "u", "detail"),
        Ranking((A, B), "q", (3.0, 1.0)),
        Ranking((A, B), "r", (1.0, 0.0)),
    ]
    assert ballots([pair, ranking, *likes], ratings=True) == [
        Rating(A, "p", (1.0,), "u"), Rating(B, "p", (10.0,), "u"), Rating(A, "q", (3.0,)),
        Rating(B, "q", (1.0,)),
        Rating(A, "r", (10.0,)), Rating(B, "r", (1.0,)),
    ]  # fmt: skip
    with pytest.raises(DataError, match="say nothing"):
        ballots(likes[:1])
    with pytest.raises(DataError, match="no mark from 1 to 10"):
        ballots([Record(prompt="q", images=(A, B), kind="ranking", values=(30.0, 1.0))], ratings=True)


def test_options_are_published_ones_with_changes() -> None:
    found = options_for("imagereward", ["steps=16", "unlocked_text=null"])
    assert (found.steps, found.epochs, found.unlocked_text, found.learning_rate) == (16, None, None, 1e-5)
    assert options_for("pickscore", ["steps=16"]).warmup == 2
    assert options_for("pickscore", []).warmup == 500
    assert options_for("my-scorer", []).loss == "bradley-terry"
    with pytest.raises(ValueError, match="learning_rat"):
        options_for("pickscore", ["learning_rat=1"])


@pytest.mark.slow
def test_training_from_a_file(tmp_path: Path) -> None:
    records = [
        Record(prompt=f"a red circle {i}", images=(image(i), image(255 - i)), kind="pair", values=(0.0, 1.0))
        for i in range(40)
    ]
    write(records, tmp_path / "votes.parquet", "pickapic")
    weights = Path(__file__).parents[2] / "samples" / "shapes" / "scorer"
    changes = ["steps=4", "batch=8", "eval_every=2", "learning_rate=1e-3"]
    report = train_on(tmp_path / "votes.parquet", "pickscore", weights, tmp_path / "out", changes)
    assert report == json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert report["steps"] == 4
