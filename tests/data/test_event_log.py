"""Event logs: kept is liked, edited away is disliked under the old prompt, all else says nothing."""

import json
from pathlib import Path

import pytest

from diffalign.data.readers import detect, read
from diffalign.data.records import DataError


def log(path: Path, *events: dict[str, object]) -> Path:
    file = path / "events.jsonl"
    file.write_text("".join(json.dumps(e) + "\n" for e in events))
    return file


def made(image: str, prompt: str, session: str = "s", user: str | None = "u") -> dict[str, object]:
    return {"event": "generated", "image": image, "prompt": prompt, "session": session, "user": user}


def kept(image: str) -> dict[str, object]:
    return {"event": "kept", "image": image}


def judged(file: Path) -> list[tuple[str, str, float]]:
    return [(Path(r.images[0].where).name, r.prompt, r.values[0]) for r in read(file)]


def test_kept_is_liked_and_edited_away_is_disliked(tmp_path: Path) -> None:
    file = log(
        tmp_path, made("1.png", "a cat"), made("2.png", "A  cat"), made("3.png", "a black cat"),
        kept("3.png"), made("4.png", "a black cat"),
    )  # fmt: skip
    assert detect(file) == "event_log"
    assert judged(file) == [
        ("1.png", "a cat", 0.0), ("2.png", "A  cat", 0.0), ("3.png", "a black cat", 1.0),
    ]  # fmt: skip
    first = read(file)[0]
    assert (first.kind, first.rater, first.images[0].where) == ("labels", "u", str(tmp_path / "1.png"))


def test_an_edit_after_keeping_says_nothing_of_the_others(tmp_path: Path) -> None:
    file = log(tmp_path, made("1.png", "a"), made("2.png", "a"), kept("2.png"), made("3.png", "b"))
    assert judged(file) == [("2.png", "a", 1.0)]


def test_kept_later_than_the_edit_still_counts(tmp_path: Path) -> None:
    file = log(tmp_path, made("1.png", "a"), made("2.png", "b"), kept("1.png"))
    assert judged(file) == [("1.png", "a", 1.0)]


def test_sessions_and_users_do_not_mix(tmp_path: Path) -> None:
    events = [
        made("1.png", "a", "s"),
        made("2.png", "b", "t"),
        made("3.png", "c", "s", "other"),
        kept("3.png"),
    ]
    assert judged(log(tmp_path, *events)) == [("3.png", "c", 1.0)]
    assert judged(log(tmp_path, *events, made("4.png", "d", "t"))) == [
        ("2.png", "b", 0.0),
        ("3.png", "c", 1.0),
    ]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "deleted", "image": "1.png"}, "event is 'deleted'; it must be generated or kept"),
        (kept("9.png"), "image is '9.png'"),
        ({"event": "generated", "image": "2.png"}, "prompt is None"),
        (made("1.png", "a"), "was generated before"),
        ({"event": "generated", "prompt": "a"}, "image is None"),
    ],
)
def test_damage_is_named(tmp_path: Path, event: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=rf"events.jsonl line 2: .*{message}"):
        read(log(tmp_path, made("1.png", "a"), event))
