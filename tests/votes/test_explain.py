"""votes explain: planted weights come back, intervals cover, separation is said."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.evaluate.results import Row, prompt_id, write_rows
from diffalign.votes.explain import differences, explain, logistic
from diffalign.votes.features import Voted, image_features, oracle_measures
from diffalign.votes.pictures import find_pictures, gallery_hash
from diffalign.votes.rows import Shown, Vote, VoteError, to_lines
from diffalign.world.grammar import single_prompts
from diffalign.world.shapes import draw
from tests.votes.helpers import START, png, results, row, vote


def test_newton_finds_the_weights_that_made_the_votes() -> None:
    rng = np.random.default_rng(0)
    x, true = rng.normal(size=(4000, 3)), np.array([1.5, -0.5, 0.0])
    y = (rng.random(4000) < 1 / (1 + np.exp(-x @ true))).astype(float)
    fit = logistic(x, y, np.arange(4000))
    assert np.abs(fit.weights - true).max() < 0.12
    assert fit.errors == pytest.approx(np.full(3, 0.045), rel=0.4)
    assert not fit.separated


def test_one_feature_by_hand() -> None:
    """n votes at x = 1, k of them won: the weight is the logit of k / n, its variance 1 / (n p (1 - p))."""
    y = np.array([1.0] * 30 + [0.0] * 10)
    fit = logistic(np.ones((40, 1)), y, np.arange(40), ridge=1e-9)
    assert fit.weights[0] == pytest.approx(np.log(3))
    assert fit.errors[0] == pytest.approx(np.sqrt(1 / (40 * 0.75 * 0.25) * 40 / 39))


def test_intervals_are_clustered_by_prompt() -> None:
    """Every vote given four times over is no more evidence than once."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 1))
    y = (rng.random(300) < 1 / (1 + np.exp(-x[:, 0]))).astype(float)
    once = logistic(x, y, np.arange(300), ridge=1e-9)
    four = logistic(np.repeat(x, 4, 0), np.repeat(y, 4), np.repeat(np.arange(300), 4), ridge=1e-9)
    assert four.errors == pytest.approx(once.errors)
    apart = logistic(np.repeat(x, 4, 0), np.repeat(y, 4), np.arange(1200), ridge=1e-9)
    assert apart.errors < 0.6 * once.errors


def test_features_that_never_differ_or_lack_are_named() -> None:
    a, b = np.array([[1.0, 5.0, np.nan], [2.0, 5.0, 3.0]]), np.array([[0.0, 5.0, 1.0], [4.0, 5.0, 1.0]])
    names, x, notes = differences(["f", "g", "h"], a, b)
    assert names == ["f", "h"]
    assert x[:, 0] == pytest.approx(np.array([1, -2]) / np.sqrt(2.5))
    assert x[:, 1] == pytest.approx([0, np.sqrt(2)])
    assert notes == [
        "g is the same in all pairs: left out",
        "h is unknown in 50% of pairs, where it counts as equal",
    ]


def scored(tmp_path: Path, votes: int = 300) -> tuple[list[Row], list[Vote]]:
    """Votes of anna for a high score x, and of ben for a low one; y is of no matter."""
    rows = results(tmp_path / "run", votes // 2, scores=("x", "y"))
    by = {(r.prompt, r.model): r for r in rows}
    rng, given = np.random.default_rng(2), []
    for i in range(votes // 2):
        gap = by[f"prompt {i}", "base"].scores["x"] - by[f"prompt {i}", "dpo"].scores["x"]
        for rater, sign in (("anna", 1), ("ben", -1)):
            first = rng.random() < 1 / (1 + np.exp(-2 * sign * gap))
            given.append(
                vote(rows, i, "a" if first else "b", rater=rater, at=i, left="ab"[int(rng.integers(2))])
            )
    return rows, given


def test_one_user_s_weights_are_the_user_s(tmp_path: Path) -> None:
    _, votes = scored(tmp_path)
    pictures = find_pictures([tmp_path / "run"])
    anna = explain(votes, pictures, features=["scores"], user="anna")
    ben = explain(votes, pictures, features=["scores"], user="ben")
    both = explain(votes, pictures, features=["scores"])
    assert anna.ranked()[0].name == "score x"
    assert anna.ranked()[0].weight.low > 1
    assert ben.ranked()[0].weight.high < -1
    (x,) = (w.weight for w in both.weights if w.name == "score x")
    assert x.low < 0 < x.high
    assert (anna.votes, anna.raters, anna.prompts, both.raters) == (150, 1, 150, 2)
    assert anna.accuracy > 0.75
    assert 0.3 < anna.left < 0.7
    (tmp_path / "v.jsonl").write_text(to_lines(votes))
    arguments = [
        "votes",
        "explain",
        str(tmp_path / "v.jsonl"),
        "--images",
        str(tmp_path / "run"),
        "--user",
        "anna",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "score x" in result.output
    assert "image brightness" in result.output


def test_a_rater_who_takes_left_does_not_blur_the_features(tmp_path: Path) -> None:
    rows = results(tmp_path, 40, scores=("x",))
    sides = ["ab"[i % 2] for i in range(40)]
    found = explain(
        [vote(rows, i, s, left=s, at=i) for i, s in enumerate(sides)], find_pictures([tmp_path]),
        features=["scores"],
    )  # fmt: skip
    assert found.left > 0.9
    assert abs(found.weights[0].weight.value) < 1


def test_separation_is_said(tmp_path: Path) -> None:
    rows, _ = scored(tmp_path, 40)
    by = {(r.prompt, r.model): r.scores["x"] for r in rows}
    sure = [
        vote(rows, i, "a" if by[f"prompt {i}", "base"] > by[f"prompt {i}", "dpo"] else "b", at=i)
        for i in range(20)
    ]
    found = explain(sure, find_pictures([tmp_path / "run"]), features=["scores"])
    assert found.separated
    assert "predict all 20 decided votes (separation)" in found.notes[-1]
    assert all(np.isfinite(w.weight.value) for w in found.weights)


def test_image_statistics_by_hand() -> None:
    grey = np.full((4, 4, 3), 51, np.uint8)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    board = (np.indices((4, 4)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    rows = [Voted(row=row("p", "m", 0, "x", png(a), {}), data=png(a)) for a in (grey, red, board)]
    found = image_features(rows)
    assert found["image brightness"] == pytest.approx([0.2, 0.299, 0.5])
    assert found["image contrast"] == pytest.approx([0, 0, 0.5], abs=1e-9)
    assert found["image saturation"] == pytest.approx([0, 1, 0])
    assert found["image high frequency"] == pytest.approx([0, 0, 1], abs=1e-9)
    with pytest.raises(VoteError, match="of 4 pixels or more"):
        image_features([Voted(row=rows[0].row, data=png(grey[:2]))])


def test_the_oracle_explains_a_taste_for_large(tmp_path: Path) -> None:
    """Rendered pictures of two sizes: the larger one always wins."""
    prompts = [p for p in single_prompts("train") if p.size is None and p.background == "white"][:12]
    rng, rows = np.random.default_rng(0), []
    for prompt in prompts:
        for model in ("base", "dpo"):
            data, text = png(_drawn(prompt, rng)), str(prompt)
            path = f"{model}/{prompt_id(text)}/0.png"
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_bytes(data)
            rows.append(row(text, model, 0, path, data, {}, 64))
    write_rows(tmp_path, rows)
    pictures = find_pictures([tmp_path])
    size = {
        r.sha256: s for r, s in zip(rows, oracle_measures(_voted(rows, tmp_path))["oracle size"], strict=True)
    }
    votes = [_larger(rows[i], rows[i + 1], size, gallery_hash(rows), i) for i in range(0, len(rows), 2)]
    found = explain(votes, pictures, features=["oracle"])
    assert found.ranked()[0].name == "oracle size"
    assert found.ranked()[0].weight.value > 0.5


def _drawn(prompt, rng):
    return (draw([prompt], rng)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def _voted(rows, folder):
    return [Voted(row=r, data=(folder / r.path).read_bytes()) for r in rows]


def _larger(a, b, size, gallery, i):
    return Vote(
        gallery=gallery, rater="anna", time=START, ms=1000, prompt_id=a.prompt_id, prompt=a.prompt, seed=0,
        a=Shown(model="base", sha256=a.sha256), b=Shown(model="dpo", sha256=b.sha256), left="ab"[i // 2 % 2],
        choice="a" if size[a.sha256] > size[b.sha256] else "b",
    )  # fmt: skip


def test_what_cannot_be_explained_is_said(tmp_path: Path) -> None:
    rows = results(tmp_path)
    pictures, votes = find_pictures([tmp_path]), [vote(rows, i, "a", at=i) for i in range(3)]
    with pytest.raises(VoteError, match="votes of ben on 0 prompts"):
        explain(votes, pictures, user="ben")
    with pytest.raises(VoteError, match="no features are called 'orcale'; there are oracle, image, scores"):
        explain(votes, pictures, features=["orcale"])
    with pytest.raises(VoteError, match="the results have no scores"):
        explain(votes, pictures, features=["scores"])
    with pytest.raises(VoteError, match="for pictures of the shapes world"):
        explain(votes, pictures, features=["oracle"])
    with pytest.raises(VoteError, match="ridge is 0"):
        explain(votes, pictures, features=["image"], ridge=0)
