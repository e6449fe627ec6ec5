"""votes to-dataset: what a reader reads back is what was voted."""

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.data.readers import read
from diffalign.data.records import Record
from diffalign.evaluate.results import Row
from diffalign.votes.dataset import DatasetOptions, Form, data_path, to_dataset, used_prompts, user_number
from diffalign.votes.pictures import find_pictures
from diffalign.votes.rows import Vote, VoteError, to_lines
from tests.votes.helpers import results, vote

FORMS: tuple[Form, ...] = ("folder", "webdataset", "pickapic")


def said(record: Record, rows: list[Row]) -> tuple[str, tuple[tuple[str, float], ...]]:
    """Prompt, and by model the value that its picture got; pictures are known by their bytes."""
    models = {r.sha256: r.model for r in rows if r.prompt == record.prompt}
    shown = [models[hashlib.sha256(image.read()).hexdigest()] for image in record.images]
    return record.prompt, tuple(zip(shown, record.values, strict=True))


def written(votes: list[Vote], tmp_path: Path, **options: str) -> list[Record]:
    chosen = DatasetOptions(**options)
    found = to_dataset(votes, find_pictures([tmp_path / "run"]), tmp_path / "data", chosen)
    records = read(data_path(tmp_path / "data", chosen.form))
    assert len(records) == found.records
    return records


@pytest.mark.parametrize("form", FORMS)
def test_pairs_come_back_as_they_were_voted(tmp_path: Path, form: Form) -> None:
    rows = results(tmp_path / "run", 5)
    votes = [vote(rows, i, c, at=i) for i, c in enumerate(["a", "b", "tie", "both_bad", "skip"])]
    records = written(votes, tmp_path, form=form)
    assert [said(r, rows) for r in records] == [
        ("prompt 0", (("base", 1.0), ("dpo", 0.0))),
        ("prompt 1", (("base", 0.0), ("dpo", 1.0))),
        ("prompt 2", (("base", 0.5), ("dpo", 0.5))),
    ]
    assert [r.models for r in records] == [("base", "dpo")] * 3
    rater = str(user_number("anna")) if form == "pickapic" else "anna"
    assert [r.rater for r in records] == [rater] * 3
    assert (tmp_path / "data" / "used_prompts.txt").read_text().splitlines() == [
        f"prompt {i}" for i in range(5)
    ]
    origin = [json.loads(line) for line in (tmp_path / "data" / "origin.jsonl").read_text().splitlines()]
    assert [(o["seed"], o["models"], o["raters"]) for o in origin] == [(0, ["base", "dpo"], ["anna"])] * 3
    if form == "pickapic":
        assert json.loads((tmp_path / "data" / "raters.json").read_text()) == {"anna": user_number("anna")}


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_likes_come_back_as_they_were_voted(tmp_path: Path, form: Form) -> None:
    rows = results(tmp_path / "run", 4)
    votes = [vote(rows, i, c, at=i) for i, c in enumerate(["a", "both_bad", "tie", "skip"])]
    records = written(votes, tmp_path, form=form, kind="likes")
    assert [said(r, rows) for r in records] == [
        ("prompt 0", (("base", 1.0),)), ("prompt 0", (("dpo", 0.0),)),
        ("prompt 1", (("base", 0.0),)), ("prompt 1", (("dpo", 0.0),)),
        ("prompt 2", (("base", 1.0),)), ("prompt 2", (("dpo", 1.0),)),
    ]  # fmt: skip
    assert {r.rater for r in records} == {"anna"}


def test_several_raters_make_a_soft_label_or_a_pair_each(tmp_path: Path) -> None:
    rows = results(tmp_path / "run")
    votes = [vote(rows, 0, "a", rater="anna"), vote(rows, 0, "b", models=("dpo", "base"), rater="ben")]
    votes += [vote(rows, 0, "b", rater="cleo"), vote(rows, 0, "tie", rater="dan")]
    (record,) = written(votes, tmp_path)
    assert said(record, rows) == ("prompt 0", (("base", 2.5 / 4), ("dpo", 1.5 / 4)))
    assert record.rater is None
    (tmp_path / "data").rename(tmp_path / "before")
    each = written(votes, tmp_path, raters="each")
    assert [(r.rater, dict(said(r, rows)[1])["base"]) for r in each] == [
        ("anna", 1.0), ("ben", 1.0), ("cleo", 0.0), ("dan", 0.5),
    ]  # fmt: skip
    with pytest.raises(VoteError, match=r"raters differ on 1 pairs.*--raters each"):
        to_dataset(votes, find_pictures([tmp_path / "run"]), tmp_path / "p", DatasetOptions(form="pickapic"))
    assert not list(tmp_path.glob("*p"))
    assert not list(tmp_path.glob(".p*"))


def test_ties_are_kept_dropped_or_soft(tmp_path: Path) -> None:
    rows = results(tmp_path / "run")
    votes = [vote(rows, 0, "tie"), vote(rows, 1, "a"), vote(rows, 1, "tie", rater="ben")]
    assert [r.values[0] for r in written(votes, tmp_path)] == [0.5, 0.75]
    (tmp_path / "data").rename(tmp_path / "kept")
    soft = written(votes, tmp_path, ties="soft")
    assert [(r.values[0], r.soft) for r in soft] == [(0.5, (0.5, 0.5)), (0.75, None)]
    (tmp_path / "data").rename(tmp_path / "soft")
    assert [r.values[0] for r in written(votes, tmp_path, ties="drop")] == [1.0]
    (tmp_path / "data").rename(tmp_path / "dropped")
    likes = written(votes, tmp_path, ties="soft", kind="likes")
    assert [r.values[0] for r in likes] == [0.5, 0.5, 1.0, 0.0, 0.5, 0.5]


def test_what_cannot_be_used_writes_nothing(tmp_path: Path) -> None:
    rows = results(tmp_path / "run")
    pictures = find_pictures([tmp_path / "run"])
    with pytest.raises(VoteError, match="1 votes give no pairs"):
        to_dataset([vote(rows, 0, "both_bad")], pictures, tmp_path / "data")
    stranger = vote(rows, 0, "a").model_copy(update={"gallery": "f" * 64})
    with pytest.raises(VoteError, match="of another gallery"):
        to_dataset([stranger], pictures, tmp_path / "data")
    (tmp_path / "run" / rows[0].path).write_bytes(b"changed")
    with pytest.raises(VoteError, match="its hash changed"):
        to_dataset([vote(rows, 0, "a")], pictures, tmp_path / "data")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    other = vote(rows, 1, "a").model_copy(update={"gallery": "f" * 64})
    assert to_dataset([other], pictures, tmp_path / "data", any_gallery=True).records == 1
    with pytest.raises(FileExistsError, match="choose a new folder"):
        to_dataset([vote(rows, 1, "a")], pictures, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "pickapic", "kind": "likes"}, "hold pairs"),
        ({"form": "pickapic", "ties": "soft"}, "hold hard labels"),
        ({"form": "csv"}, "form is 'csv'; it must be pickapic, folder, webdataset"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(VoteError, match=message):
        DatasetOptions(**options)


def test_used_prompts_are_those_seen_each_on_one_line(tmp_path: Path) -> None:
    rows = results(tmp_path)
    odd = vote(rows, 1, "skip").model_copy(update={"prompt": "two\nlines "})
    assert used_prompts([vote(rows, 0, "a"), odd, vote(rows, 0, "b", rater="ben")]) == [
        "prompt 0",
        "two lines",
    ]


def test_numbers_of_raters_stay(tmp_path: Path) -> None:
    assert user_number("17") == 17
    assert user_number("r-7f3a") == int(hashlib.sha256(b"r-7f3a").hexdigest()[:12], 16)
    assert user_number("9" * 40) < 2**48


def test_the_command_writes_and_says_what_it_left_out(tmp_path: Path) -> None:
    rows = results(tmp_path / "run")
    votes = [vote(rows, 0, "a"), vote(rows, 1, "both_bad"), vote(rows, 2, "skip")]
    (tmp_path / "v.jsonl").write_text(to_lines(votes))
    arguments = ["votes", "to-dataset", str(tmp_path / "v.jsonl"), "--images", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "data"), "--kind", "likes"])
    assert result.exit_code == 0, result.output
    assert "4 likes in" in result.output
    assert "1 votes of both bad: two dislikes each" in result.output
    assert "1 skips" in result.output
