"""Event logs of an application that makes pictures: what was kept is liked, what was edited away disliked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diffalign.data.readers.base import Reader, Row, caption, image_file, json_lines, readers, text
from diffalign.data.records import DataError, FileImage, Record
from diffalign.data.split import normalise

EVENTS = ("generated", "kept")


@dataclass
class Attempt:
    """Pictures that one person made in a row with one prompt."""

    prompt: str
    rows: list[tuple[str, Row]] = field(default_factory=list)


@readers.register("event_log")
class EventLog(Reader):
    """Lines ``{"event", "image", "prompt", "session", "user"}`` in the order in which they happened.

    ``generated`` has an image (a path relative to the log) and the prompt it was made with, ``kept`` the
    image of an earlier ``generated`` line. A kept picture is liked under its prompt. Where a session goes on
    with an edited prompt and kept none of the pictures of the one before, those are disliked under the old
    prompt; the last prompt of a session was not edited, so its other pictures say nothing. The same prompt
    once more is no edit; case and white space do not matter. ``session`` and ``user`` may be missing.
    """

    summary = "jsonl with event (generated or kept), image, prompt, session, user"

    def matches(self, path: Path) -> bool:
        """Whether the first line of a jsonl file has an event."""
        if path.suffix != ".jsonl" or not path.is_file():
            return False
        return "event" in next(json_lines(path), ("", {}))[1]

    def records(self, path: Path) -> Iterator[Record]:
        """Yield a like or a dislike for each picture that was judged, in the order of their making."""
        sessions, kept = _sessions(path)
        judged: list[tuple[int, Record]] = []
        for attempts in sessions.values():
            for number, attempt in enumerate(attempts):
                edited = number + 1 < len(attempts)
                any_kept = any(row["image"] in kept for _, row in attempt.rows)
                for where, row in attempt.rows:
                    if row["image"] in kept or (edited and not any_kept):
                        judged.append(_judged(row, row["image"] in kept, path.parent, where))
        yield from (record for _, record in sorted(judged, key=lambda pair: pair[0]))


def _sessions(path: Path) -> tuple[dict[object, list[Attempt]], set[str]]:
    """Attempts by session, and the images that were kept."""
    sessions: dict[object, list[Attempt]] = {}
    made: set[str] = set()
    kept: set[str] = set()
    for number, (where, row) in enumerate(json_lines(path)):
        event, image = row.get("event"), row.get("image")
        if event not in EVENTS:
            raise DataError(f"{where}: event is {event!r}; it must be {' or '.join(EVENTS)}")
        if not isinstance(image, str) or (event == "kept" and image not in made):
            raise DataError(
                f"{where}: image is {image!r}; it must be the path of a picture, generated before"
            )
        if event == "kept":
            kept.add(image)
            continue
        if image in made:
            raise DataError(f"{where}: {image} was generated before; every picture needs a path of its own")
        made.add(image)
        prompt = caption(row, "prompt", where)
        attempts = sessions.setdefault((row.get("session"), row.get("user")), [])
        if not attempts or normalise(attempts[-1].prompt) != normalise(prompt):
            attempts.append(Attempt(prompt))
        attempts[-1].rows.append((where, {**row, "number": number}))
    return sessions, kept


def _judged(row: Row, liked: bool, folder: Path, where: str) -> tuple[int, Record]:
    image: FileImage = image_file(folder, row["image"], "image", where)
    record = Record(
        prompt=row["prompt"],
        images=(image,),
        kind="labels",
        values=(float(liked),),
        rater=text(row.get("user")),
        source=where,
    )
    return row["number"], record
