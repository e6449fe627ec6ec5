"""What one evaluation is asked to do, and the folder that it works in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import scorers
from diffalign.evaluate.generate import Sampling
from diffalign.evaluate.models import Model, identity
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.report import write_atomic
from diffalign.evaluate.results import prompt_id

SETTINGS = "settings.json"
REQUEST = ".request.json"
LOCK = ".lock"


class RequestError(ValueError):
    """An evaluation that cannot be done as asked; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures of every model for every prompt and seed, and what measures them."""

    models: tuple[Model, ...]
    """The base first."""
    prompts: tuple[EvalPrompt, ...]
    scorers: tuple[str, ...]
    """``name`` or ``name=weights``, the primary one first; all held out."""
    output: Path
    trained_on: tuple[str, ...] = ()
    """Scorers that a model was trained on."""
    sets: tuple[str, ...] = ()
    """Scorers of sets (vendi, lpips-diversity, ...) for the diversity of a prompt's seeds."""
    seeds: int = 4
    shifts: tuple[str, ...] = ()
    """Changes of the initial noise under which the primary scorer looks again, see ``studies.read_shift``."""
    smoothness: int = 0
    """Pictures on the path from seed 0 to seed 1 of each prompt, of which ISTD is taken; 0 takes none."""
    sampling: Sampling = field(default_factory=Sampling)
    precision: str = "fp32"
    text_length: int = 32

    def __post_init__(self) -> None:
        """Check what can be checked without loading anything.

        Raises:
            RequestError: no prompts, fewer than two of them or of the seeds, or no or doubled scorers.
        """
        if len(self.prompts) < 2:
            raise RequestError(f"{len(self.prompts)} prompts are left; an interval needs at least 2")
        if self.seeds < 2:
            raise RequestError("1 seed shows no spread, which is the unit of gains: give --seeds 2 or more")
        names = [scorer_name(s) for s in (*self.scorers, *self.trained_on)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise RequestError(f"scorer {twice!r} is named twice: it is held out or trained on, and once")
        if not self.scorers:
            raise RequestError("no held-out scorer: give --scorers (diffalign scorers list)")

    @property
    def batches(self) -> list[list[EvalPrompt]]:
        """Prompts that are drawn and measured together, all their seeds at once.

        They are formed by the hash of the prompts, so that every process, and every run that goes on where
        another stopped, makes the same pictures to the last bit.
        """
        ordered = sorted(self.prompts, key=lambda p: prompt_id(p.prompt))
        size = max(1, self.sampling.batch // self.seeds)
        return [ordered[i : i + size] for i in range(0, len(ordered), size)]

    def picture(self, model: str, prompt: str, seed: int) -> Path:
        """File of one picture."""
        return self.output / model / prompt_id(prompt) / f"{seed}.png"

    def to_json(self) -> str:
        """For other processes."""
        return json.dumps(asdict(self) | {"output": str(self.output)})

    @classmethod
    def of_json(cls, text: str) -> Request:
        """What ``to_json`` wrote."""
        row: dict[str, Any] = json.loads(text)
        row |= {name: tuple(row[name]) for name in ("scorers", "trained_on", "sets", "shifts")}
        return cls(**row | {
            "models": tuple(Model(**m) for m in row["models"]),
            "prompts": tuple(EvalPrompt(**p) for p in row["prompts"]),
            "sampling": Sampling(**row["sampling"]),
            "output": Path(row["output"]),
        })  # fmt: skip


def scorer_name(spec: str) -> str:
    """Name of a scorer given in one word; see ``scorers.Spec``."""
    return scorers.Spec.parse(spec).name


@contextmanager
def claimed(output: Path) -> Iterator[IO[str]]:
    """Make the folder and keep other evaluations out of it; worker processes inherit the lock.

    Raises:
        RequestError: the folder holds other things than an evaluation.
        BlockingIOError: another evaluation is at work there.
    """
    if output.exists() and any(output.iterdir()) and not (output / LOCK).exists():
        raise RequestError(f"{output} holds other files, and nothing is overwritten: choose a new --output")
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "w", encoding="utf-8") as lock:
        _lock(lock, output)
        yield lock


def _lock(file: IO[str], output: Path) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows has no such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BlockingIOError(f"another evaluation is writing {output}: let it finish or stop it") from None


def settle(request: Request) -> None:
    """Write settings.json, or compare with the one that is there: pictures of other settings never mix.

    Raises:
        RequestError: something that decides pictures has changed; the message names it.
        ModelError: a run was trained from other weights than the base's.
    """
    base = request.models[0]
    now: dict[str, Any] = {"v": 1, "sampling": _sampling(request), "models": {}}
    weights = {m.name: {"path": m.path, "weights": identity(m, base)} for m in request.models}
    file = request.output / SETTINGS
    before: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else now
    changes = _changes(before["sampling"], now["sampling"])
    changes += [
        f"the weights of {name}"
        for name, model in weights.items()
        if before["models"].get(name, model)["weights"] != model["weights"]
    ]
    if changes:
        raise RequestError(
            f"{request.output} holds pictures that were made with other settings ({'; '.join(changes)}): "
            "choose a new --output, or the settings of before"
        )
    write_atomic(file, json.dumps(now | {"models": before["models"] | weights}, indent=2) + "\n")


def _sampling(request: Request) -> dict[str, Any]:
    from diffalign.policy.precision import best_device

    s = request.sampling
    return {
        "steps": s.steps, "guidance": s.guidance, "side": s.side, "noise": s.noise,
        "precision": request.precision, "text_length": request.text_length, "device": best_device().type,
    }  # fmt: skip


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [f"{k} was {before[k]} and is {now[k]}" for k in now if before[k] != now[k]]
