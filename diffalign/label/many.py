"""``diffalign score`` at scale: every picture once, over several processes, and on after a stop."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from diffalign.data.keys import content_key
from diffalign.data.records import DataError, parquet
from diffalign.label.judges import Judge
from diffalign.label.pictures import Picture
from scorers.base import ScorerBase
from scorers.each import FAULT, LOST, Outcome, failed, read_each, score_each
from scorers.exchange import RemoteError
from scorers.preprocess import PadPreprocess, Preprocess, SquashPreprocess

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (pictures done by this process, its share)."""
AHEAD = 2
"""Batches that are read while one is scored."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the work this process does."""

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        """Check the range.

        Raises:
            ValueError: not 0 <= rank < world.
        """
        if not 0 <= self.rank < self.world:
            raise ValueError(
                f"process {self.rank} of {self.world}: the first is 0, the last {self.world - 1}"
            )

    @classmethod
    def of_environment(cls) -> Share:
        """RANK and WORLD_SIZE, as accelerate and torchrun set them; else all of the work."""
        return cls(rank=int(os.environ.get("RANK", "0")), world=int(os.environ.get("WORLD_SIZE", "1")))

    def of(self, n: int) -> range:
        """Positions of this part: neighbours, so that tables are read in order."""
        return range(self.rank * n // self.world, (self.rank + 1) * n // self.world)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What one process did."""

    output: Path | None
    """The finished file; None where other processes still have work to do."""
    made: int
    """Pictures scored now."""
    kept: int
    """Pictures that an earlier run had scored."""
    failed: int
    """Pictures, of those scored now, that some scorer gave no score."""
    seconds: float

    def line(self) -> str:
        """One line for people."""
        rate = f"{self.made / self.seconds:.1f} images/s" if self.made and self.seconds > 0 else "nothing new"
        where = f"{self.output}" if self.output else "waiting for the other processes"
        return f"{where}: {self.made} scored ({rate}), {self.kept} from before, {self.failed} failed"


def score_many(
    items: Sequence[Picture],
    judges: Sequence[Judge],
    output: Path,
    *,
    batch: int = 32,
    workers: int = 4,
    share: Share | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Score pictures into ``output``, a ``.jsonl`` or ``.parquet`` file with a row each, in their order.

    Rows go to ``output.parts/`` as they come; a run that is killed goes on there, also with another number of
    processes. Whoever finishes last writes ``output`` at one stroke and deletes the parts. A picture that
    cannot be read or scored has a row too, whose status says why. One that a reward server gave no answer to
    has none, and one over which it stumbled is tried again where a run goes on.

    Args:
        items: pictures with unique keys.
        judges: scorers; each gives the columns NAME, NAME.status and, where it has them, NAME.std, NAME.DIM.
        output: file that does not exist.
        batch: pictures that go through a scorer at once.
        workers: threads that read and decode ahead.
        share: part of this process; None asks the environment.
        progress: called as work gets done.

    Raises:
        FileExistsError: the output exists (of several processes none raises: another may have written it).
        DataError: another ending, or parts of other pictures or scorers.
        BlockingIOError: another process has the same share.
        RemoteError: a reward server is gone: at once where it answers to no picture of a batch, else at the
            end; the same command goes on.
        ModuleNotFoundError: a parquet file is asked for and pyarrow is not installed.
    """
    if output.suffix not in (".jsonl", ".parquet"):
        raise DataError(f"{output}: the output must end in .jsonl or .parquet")
    if output.suffix == ".parquet":
        parquet()  # what is missing must show before hours of work
    share, start = share or Share.of_environment(), time.perf_counter()
    mine = [items[i] for i in share.of(len(items))]
    if output.exists():
        if share.world == 1:
            raise FileExistsError(f"{output} exists and is not overwritten: name another --output")
        logger.warning("%s exists, perhaps by a faster process of this run; nothing is done", output)
        return Summary(output=output, made=0, kept=len(mine), failed=0, seconds=0.0)
    parts = Parts(output.with_name(output.name + ".parts"), _plan(items, judges))
    done = parts.keys()
    todo = [item for item in mine if item.key not in done]
    bad, lost = 0, Lost(parts.folder)
    with parts.open(share) as file:
        for count, found in scored_rows(todo, judges, batch, workers):
            rows = lost.without(found)
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
            if found and not rows:
                raise lost.error()
            bad += sum(any(row[judge.name] is None for judge in judges) for row in rows)
            if progress is not None:
                progress(len(mine) - len(todo) + count, len(mine))
    if lost.count:
        raise lost.error()
    return Summary(
        output=parts.finish(items, output), made=len(todo), kept=len(mine) - len(todo), failed=bad,
        seconds=time.perf_counter() - start,
    )  # fmt: skip


class Lost:
    """Rows to which a reward server gave no answer; they are no results."""

    def __init__(self, folder: Path) -> None:
        """``folder`` keeps the others."""
        self.folder, self.count, self.why = folder, 0, ""

    def without(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows that are results."""
        gone = [row for row in rows if _has(row, (LOST,))]
        self.count += len(gone)
        self.why = next((s for row in gone for s in _statuses(row) if s.startswith(LOST)), self.why)
        return [row for row in rows if not _has(row, (LOST,))]

    def error(self) -> RemoteError:
        """What to tell."""
        return RemoteError(
            f"{self.count} pictures got no answer ({self.why.removeprefix(LOST)}); what was scored is "
            f"kept in {self.folder}: give the same command again when the server is there"
        )


def _statuses(row: dict[str, Any]) -> Iterator[str]:
    return (str(value) for name, value in row.items() if name.endswith(".status"))


def _has(row: dict[str, Any], beginnings: tuple[str, ...]) -> bool:
    """Whether some scorer's status of the row begins so."""
    return any(status.startswith(beginnings) for status in _statuses(row))


class Parts:
    """Rows of an unfinished output: a file per share, each line whole or not counted."""

    def __init__(self, folder: Path, plan: str) -> None:
        """Make or check the folder."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "plan"
        if not file.exists():
            _replace(file, lambda f: f.write_text(plan))
        if file.read_text() != plan:
            raise DataError(
                f"{folder} holds rows of other pictures, prompts or scorers; name another --output, or "
                "delete the folder to start again"
            )

    def rows(self) -> Iterator[dict[str, Any]]:
        """Whole rows of all shares."""
        for file in sorted(self.folder.glob("*.jsonl")):
            with open(file, encoding="utf-8") as lines:
                yield from (json.loads(line) for line in lines if line.endswith("}\n"))

    def keys(self) -> set[str]:
        """Keys of what is done; what a reward server stumbled over may succeed another time."""
        return {row["key"] for row in self.rows() if not _has(row, (FAULT, LOST))}

    def open(self, share: Share) -> IO[str]:
        """File of a share, for rows to be added; a line that was cut off is cut off wholly.

        Raises:
            BlockingIOError: another process has it open.
        """
        file = self.folder / f"{share.rank:05d}-of-{share.world:05d}.jsonl"
        out = open(file, "a+b")  # noqa: SIM115, the caller closes it
        _lock(out)
        whole = file.read_bytes().rfind(b"\n") + 1
        out.truncate(whole)
        return io.TextIOWrapper(out, encoding="utf-8")

    def finish(self, items: Sequence[Picture], output: Path) -> Path | None:
        """Write the output if every picture has its row; None if not. Processes do it one after another."""
        try:
            with open(self.folder / "plan") as plan:
                _lock(plan, wait=True)
                return output if output.exists() else self._finish(items, output)
        except FileNotFoundError:
            if output.exists():  # another process saw our last row, wrote the output and deleted the parts
                return output
            raise

    def _finish(self, items: Sequence[Picture], output: Path) -> Path | None:
        found = {row["key"]: row for row in self.rows()}
        if len(found) < len(items):
            return None
        rows = (found[item.key] for item in items)
        _replace(output, lambda f: (write_jsonl if output.suffix == ".jsonl" else write_parquet)(rows, f))
        for file in sorted(self.folder.iterdir()):
            file.unlink(missing_ok=True)
        self.folder.rmdir()
        return output


def _plan(items: Sequence[Picture], judges: Sequence[Judge]) -> str:
    """Digest of what is scored by what."""
    rows = json.dumps([[item.key, item.prompt] for item in items])
    return content_key("score", json.dumps([[j.name, j.id] for j in judges]), rows)


def scored_rows(
    items: Sequence[Picture], judges: Sequence[Judge], batch: int, workers: int
) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows of each batch with the count so far, while the next batches are read."""
    batches = [items[i : i + batch] for i in range(0, len(items), batch)]
    count, fit = 0, _fit(judges)
    with ThreadPoolExecutor(workers, "read") as pool:
        reading: list[list[Future[Any]]] = []
        for number, some in enumerate(batches):
            while len(reading) <= number + AHEAD and len(reading) < len(batches):
                reading.append([pool.submit(_read, item, fit) for item in batches[len(reading)]])
            read = [future.result() for future in reading[number]]
            reading[number] = []
            count += len(some)
            yield count, _scored(some, read, judges, batch)


def _fit(judges: Sequence[Judge]) -> Callable[[Tensor], Tensor] | None:
    """Resizing that can be done while reading, so that pictures of all sizes go through the scorer at once.

    Only for a single scorer with one of the transforms that leave their own results alone.
    """
    scorer = judges[0].scorer
    once = (Preprocess, PadPreprocess, SquashPreprocess)
    if len(judges) == 1 and isinstance(scorer, ScorerBase) and isinstance(scorer.preprocess, once):
        return scorer.preprocess.fit
    return None


@torch.no_grad()
def _read(item: Picture, fit: Callable[[Tensor], Tensor] | None = None) -> Any:
    try:
        data = item.image.read()
    except (OSError, ValueError) as error:
        return failed(f"{item.image.where}: {error}")
    found = read_each([data])[0]
    try:
        return fit(found[None])[0] if fit is not None and isinstance(found, Tensor) else found
    except ValueError as error:  # of a shape that the transform refuses
        return failed(error)


def _scored(
    items: Sequence[Picture], read: Sequence[Any], judges: Sequence[Judge], batch: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"key": i.key, "prompt": i.prompt} for i in items]
    for judge in judges:
        outcomes = score_each(judge.scorer, read, [i.prompt or "" for i in items], chunk=batch)
        for row, outcome in zip(rows, outcomes, strict=True):
            row.update(_columns(judge, outcome))
    return rows


def _columns(judge: Judge, outcome: Outcome) -> dict[str, Any]:
    """A scorer's columns; scores as the scorer gives them, also where lower is better."""
    name = judge.name
    found: dict[str, Any] = {name: outcome.score, f"{name}.status": outcome.status}
    if outcome.std is not None:
        found[f"{name}.std"] = outcome.std
    return found | {f"{name}.{dim}": value for dim, value in outcome.dims.items()}


def write_jsonl(rows: Iterator[dict[str, Any]], file: Path) -> None:
    """A JSON object per line."""
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def write_parquet(rows: Iterator[dict[str, Any]], file: Path, *, rows_per_group: int = 10_000) -> None:
    """A table; columns that only some rows have are empty in the others.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    pq = parquet()
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    every = list(rows)
    names = list(dict.fromkeys(name for row in every for name in row))
    text = {"key", "prompt"} | {n for n in names if n.endswith(".status")}
    schema = pa.schema([(n, pa.string() if n in text else pa.float64()) for n in names])
    with pq.ParquetWriter(file, schema) as out:
        for i in range(0, len(every), rows_per_group):
            out.write_table(pa.Table.from_pylist(every[i : i + rows_per_group], schema=schema))


def spawn(processes: int, arguments: Sequence[str]) -> None:
    """Run ``diffalign ARGUMENTS`` in several processes that share the work, and wait for all.

    Raises:
        ChildProcessError: one failed; its own message is above. What was scored is kept.
    """
    command = [sys.executable, "-c", "from diffalign.cli import main; main()", *arguments]
    running = [
        subprocess.Popen(command, env={**os.environ, "RANK": str(i), "WORLD_SIZE": str(processes)})
        for i in range(processes)
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise ChildProcessError(
            f"{sum(map(bool, codes))} of {processes} processes failed, with their messages above; what was "
            "scored is kept: run the same command again"
        )


def _lock(file: IO[Any], wait: bool = False) -> None:
    """Keep other processes off a file; the lock goes with the process, however it ends.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another process is writing {file.name}; let it finish or stop it") from None


def _replace(file: Path, write: Callable[[Path], object]) -> None:
    """Write beside and move into place."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    write(temporary)
    os.replace(temporary, file)
