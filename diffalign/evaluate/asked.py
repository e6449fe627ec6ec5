"""The options of ``diffalign evaluate``, as they were given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from diffalign.evaluate.models import People


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One command."""

    models: tuple[str, ...]
    """Base first, ``PATH`` or ``NAME=PATH``."""
    prompts: str
    """File; of a single run folder a number, or empty."""
    scorers: tuple[str, ...] = ()
    primary: str = ""
    trained_on: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    """Scorers of sets, for diversity."""
    seeds: int = 0
    output: Path = Path("outputs/evaluation")
    part: str = "report"
    limit: int = 0
    steps: int = 20
    guidance: float = 4.0
    side: int = 0
    batch: int = 32
    noise: str = "own"
    precision: str = "fp32"
    text_length: int = 32
    processes: int = 1
    control: tuple[str, ...] = ()
    votes: tuple[Path, ...] = ()
    shift: tuple[str, ...] = ()
    smoothness: int = 0
    used: tuple[Path, ...] = ()
    allow_contaminated: bool = False
    tie_margin: float = 0.25
    people: People = field(default_factory=People)
