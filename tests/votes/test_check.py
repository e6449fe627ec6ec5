"""votes check: raters and pictures are looked at, and what is wrong is counted."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.votes.check import binomial_p, check, refuse_unusable
from diffalign.votes.count import counted
from diffalign.votes.pictures import find_pictures
from diffalign.votes.rows import Shown, VoteError, to_lines
from tests.votes.helpers import START, results, vote


def test_binomial_test_is_exact() -> None:
    assert binomial_p(0, 0) == 1.0
    assert binomial_p(5, 10) == 1.0
    assert binomial_p(0, 5) == binomial_p(5, 5) == 2 / 32
    assert binomial_p(8, 10) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_a_rater_who_always_takes_left_and_clicks_at_once_is_flagged(tmp_path: Path) -> None:
    rows = results(tmp_path, 10)
    votes = [
        vote(rows, i, "a" if i % 2 else "b", left="a" if i % 2 else "b", at=i, ms=399) for i in range(10)
    ]
    (rater,) = check(votes).raters
    assert (rater.left_share, rater.fast, rater.median_ms) == (1.0, 10, 399)
    assert rater.left_p == pytest.approx(2 / 1024)
    assert rater.remarks() == ["left chosen in 100% of 10 (p = 0.002)", "10 votes under 400 ms"]


def test_repeats_with_sides_exchanged_are_compared_by_picture(tmp_path: Path) -> None:
    rows = results(tmp_path, 5)
    first = [vote(rows, i, "a", at=i) for i in range(4)]
    again = [
        vote(rows, 0, "b", models=("dpo", "base"), at=10, repeat_of=START),  # the base again
        vote(rows, 1, "b", models=("dpo", "base"), at=11, repeat_of=START + timedelta(seconds=1)),
        vote(rows, 2, "a", models=("dpo", "base"), at=12, repeat_of=START + timedelta(seconds=2)),
        vote(rows, 3, "skip", at=13, repeat_of=START + timedelta(seconds=3)),  # says nothing
        vote(rows, 4, "a", at=14, repeat_of=START + timedelta(seconds=99)),  # its first time is missing
    ]
    (rater,) = check(first + again).raters
    assert (rater.agreed, rater.repeats, rater.self_agreement) == (2, 3, 2 / 3)
    assert [v.prompt for v in counted(first + again).votes] == [f"prompt {i}" for i in range(4)]


@pytest.mark.parametrize(("failed", "out"), [(1, False), (2, True)])
def test_a_rater_who_fails_over_a_third_of_anchors_is_left_out(
    tmp_path: Path, failed: int, out: bool
) -> None:
    rows = results(tmp_path)
    given = [vote(rows, i % 4, "b", at=i) for i in range(4)]
    answers = ["b"] * failed + ["a"] * (3 - failed)
    given += [vote(rows, 0, c, models=("base", "base"), anchor="a", at=20 + i) for i, c in enumerate(answers)]
    other = vote(rows, 0, "a", rater="ben")
    found, valid = check([*given, other]), counted([*given, other])
    assert [r.left_out for r in found.raters] == [out, False]
    assert valid.left_out == ({"anna": 7} if out else {})
    assert len(valid.votes) == (1 if out else 5)


def test_the_last_word_counts_and_a_skip_takes_a_vote_back(tmp_path: Path) -> None:
    rows = results(tmp_path)
    votes = [
        vote(rows, 0, "a", at=0), vote(rows, 0, "b", at=5), vote(rows, 1, "a", at=1),
        vote(rows, 1, "skip", at=6),
        vote(rows, 2, "a", at=2, aspect="looks"), vote(rows, 2, "b", at=3),
    ]  # fmt: skip
    found = counted(votes)
    assert [(v.prompt, v.aspect, v.choice) for v in found.votes] == [
        ("prompt 2", "looks", "a"), ("prompt 2", "overall", "b"), ("prompt 0", "overall", "b"),
    ]  # fmt: skip
    assert (found.revised, found.skips) == (2, 1)


def test_pictures_of_another_gallery_missing_or_changed_are_named(tmp_path: Path) -> None:
    rows = results(tmp_path / "one")
    given = [vote(rows, i, "a", at=i) for i in range(4)]
    assert check(given, find_pictures([tmp_path / "one"])).usable
    other = [replace_gallery(v) for v in given[:1]]
    found = check([*given, *other], find_pictures([tmp_path / "one"]))
    assert list(found.unknown_galleries.values()) == [1]
    with pytest.raises(VoteError, match="1 of 5 votes are of another gallery"):
        refuse_unusable(found)
    (tmp_path / "one" / rows[0].path).write_bytes(b"other")
    (tmp_path / "one" / rows[1].path).unlink()
    gone = given[3].model_copy(update={"a": Shown(model="nobody", sha256="0" * 64)})
    anew = given[3].model_copy(update={"b": Shown(model="dpo", sha256="0" * 64)})
    troubles = check([*given, gone, anew], find_pictures([tmp_path / "one"])).troubles
    said = " | ".join(troubles)
    assert list(troubles.values()) == [1, 1, 1, 1]
    for words in (
        "its hash changed): restore",
        "cannot be read",
        "no picture of model 'nobody'",
        "made anew",
    ):
        assert words in said


def replace_gallery(given):
    return given.model_copy(update={"gallery": "f" * 64})


def test_no_votes_is_an_error() -> None:
    with pytest.raises(VoteError, match="there are no votes"):
        check([])


def test_the_command_prints_writes_and_tells_by_its_exit_code(tmp_path: Path) -> None:
    rows = results(tmp_path / "run")
    votes = [vote(rows, i, "a", at=i) for i in range(3)] + [vote(rows, 3, "skip", rater="[b]ben")]
    (tmp_path / "v.jsonl").write_text(to_lines(votes))
    arguments = ["votes", "check", str(tmp_path / "v.jsonl"), "--images", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "c.json")])
    assert result.exit_code == 0, result.output
    assert "all votes fit the pictures" in result.output
    assert "[b]ben" in result.output
    found = json.loads((tmp_path / "c.json").read_text())
    assert [r["left_share"] for r in found["raters"]] == [1.0, None]
    (tmp_path / "run" / rows[0].path).unlink()
    assert CliRunner().invoke(app, arguments).exit_code == 1
    again = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "c.json")])
    assert again.exit_code == 2
    assert "exists" in again.output
