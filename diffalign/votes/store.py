"""Votes in SQLite: one row a vote, on disk before anybody is told so."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffalign.evaluate.report import write_atomic
from diffalign.votes.rows import Vote, VoteError, parse_vote

TABLES = """
CREATE TABLE IF NOT EXISTS votes (
    number INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, rater TEXT NOT NULL, row TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS votes_of ON votes (rater, number);
CREATE TABLE IF NOT EXISTS withdrawn (identity TEXT PRIMARY KEY);
CREATE VIEW IF NOT EXISTS counted AS
    SELECT * FROM votes WHERE identity NOT IN (SELECT identity FROM withdrawn);
"""
BUSY = 30.0
"""Seconds to wait for another process that writes."""


class VoteStore:
    """A file of votes. Votes are only ever added, so that no two tabs or raters can overwrite each other.

    A vote that is taken back stays in the file too, and is marked.
    Calls from several threads wait for one another.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            VoteError: it is there and is no file of votes.
            OSError: it cannot be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._lock = path, threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=BUSY, check_same_thread=False, isolation_level=None)
            # FULL: a commit has reached the disk when it returns, so that even a power cut loses no vote.
            self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {TABLES}")
        except sqlite3.DatabaseError as error:
            raise VoteError(f"{path} is no file of votes ({error}): name another one") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def add(self, vote: Vote, row: str) -> tuple[bool, int]:
        """Store a vote and return whether it is new, and how many its rater has now.

        It is on disk when this returns. The same vote again changes nothing, and neither does one that was
        taken back before it came.

        Args:
            vote: the vote.
            row: its JSON in one line, which ``rows`` gives back as it is: a page knows its votes by how their
                time is written.
        """
        with self._all_or_nothing() as db:
            before = _count(db, vote.rater)
            db.execute(
                "INSERT OR IGNORE INTO votes (identity, rater, row) VALUES (?, ?, ?)",
                (identity(vote), vote.rater, row),
            )
            count = _count(db, vote.rater)
        return count > before, count

    def withdraw(self, vote: Vote) -> tuple[bool, int]:
        """Take a vote back and return whether it counted till now, and how many its rater has left.

        It holds also for a vote that is still on its way here.
        """
        with self._all_or_nothing() as db:
            before = _count(db, vote.rater)
            db.execute("INSERT OR IGNORE INTO withdrawn (identity) VALUES (?)", (identity(vote),))
            count = _count(db, vote.rater)
        return count < before, count

    def rows(self, rater: str | None = None) -> list[str]:
        """JSON rows of one rater, or of all, in the order in which they came; none that was taken back."""
        query = "SELECT row FROM counted WHERE rater = coalesce(?, rater) ORDER BY number"
        with self._lock:
            return [row for (row,) in self._db.execute(query, (rater,))]

    def votes(self) -> list[Vote]:
        """All votes, in the order in which they came; none that was taken back."""
        return [parse_vote(row, f"{self.path}, vote {n}") for n, row in enumerate(self.rows(), 1)]

    @contextmanager
    def _all_or_nothing(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise


def _count(db: sqlite3.Connection, rater: str) -> int:
    (count,) = db.execute("SELECT count(*) FROM counted WHERE rater = ?", (rater,)).fetchone()
    return int(count)


def identity(vote: Vote) -> str:
    """Name of a vote by all that it says."""
    return hashlib.sha256(vote.model_dump_json().encode()).hexdigest()


def export_votes(votes: Path, output: Path) -> int:
    """Write the votes of a server's file as JSON lines, and return how many; also while it is served.

    Raises:
        VoteError: there is no file of votes, or it holds none.
        FileExistsError: there is something at ``output``.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists: choose another --export")
    if not votes.is_file():
        raise VoteError(f"there are no votes at {votes}: name the file that gallery serve was given")
    store = VoteStore(votes)
    try:
        rows = store.rows()
    finally:
        store.close()
    if not rows:
        raise VoteError(f"{votes} holds no votes yet")
    write_atomic(output, "".join(f"{row}\n" for row in rows))
    return len(rows)
