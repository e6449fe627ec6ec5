"""Vote rows: what is read is what was written, and damage is named."""

import json
from pathlib import Path

import pytest

from diffalign.votes.rows import VoteError, parse_vote, read_votes, to_lines

ROW = {
    "v": 1, "gallery": "0" * 64, "rater": "r-7f3a", "time": "2026-11-21T08:00:00Z", "ms": 2310,
    "prompt_id": "pp-0412", "prompt": "a red circle", "seed": 3, "a": {"model": "base", "sha256": "1" * 64},
    "b": {"model": "dpo", "sha256": "2" * 64}, "left": "b", "choice": "a", "aspect": "overall",
    "repeat_of": None, "note": "",
}  # fmt: skip


def test_a_row_of_the_format_is_read_and_written(tmp_path: Path) -> None:
    vote = parse_vote(json.dumps(ROW), "here")
    (tmp_path / "votes.jsonl").write_text(to_lines([vote, vote]) + "\n")
    assert read_votes([tmp_path / "votes.jsonl"]) == [vote]
    assert (vote.b.model, vote.choice, vote.anchor) == ("dpo", "a", None)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"choice": "c"}, "choice"), ({"ms": -1}, "ms"), ({"extra": 1}, "extra"), ({"gallery": "x"}, "gallery")],
)
def test_a_damaged_row_is_named(tmp_path: Path, change: dict[str, object], named: str) -> None:
    (tmp_path / "votes.jsonl").write_text(json.dumps(ROW | change) + "\n")
    with pytest.raises(VoteError, match=rf"votes.jsonl:1: {named}"):
        read_votes([tmp_path / "votes.jsonl"])
