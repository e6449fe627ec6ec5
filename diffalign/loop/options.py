"""Options of a loop, kept beside it so that it goes on as it began."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffalign.evaluate.results import NAME

FILE = "loop.json"
RECIPES = {"samples/shapes/unet": "shapes-unet-dpo", "samples/shapes/dit": "shapes-dit-dpo"}
"""Recipes whose settings are taken where none is named."""
CHOICES = {"objective": ("dpo", "kto"), "rater": ("simulated", "human")}


class LoopError(ValueError):
    """A loop that cannot go on; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """What a loop does."""

    pipeline: str = "samples/shapes/unet"
    """Diffusers folder of the model that is aligned."""
    recipe: str = ""
    """Recipe whose settings are taken, by path or name; empty takes that of a shapes pipeline."""
    taste: str = "large"
    """What the simulated rater likes; whoever votes, in the shapes world prompts leave it open."""
    rater: str = "simulated"
    """simulated, or human: the loop stops for the votes of people."""
    votes: int = 100
    """Pairs that are voted on in each round, one a prompt."""
    candidates: int = 0
    """Pairs that these are chosen from; 0 takes as many, or twice as many where they are chosen by scores."""
    choose: str = "random"
    """How pairs are chosen: random, margin, disagreement, entropy or routed."""
    scorers: tuple[str, ...] = ()
    """Scorers, name or name=weights, whose scores pairs are chosen by."""
    objective: str = "dpo"
    """dpo, on pairs; kto, on likes and dislikes."""
    steps: int = 20
    """Training steps of each round."""
    learning_rate: float = 0.0
    """Peak learning rate; 0 takes half of the recipe's: a round has few votes, and others follow."""
    prompts: str = ""
    """File of training prompts; empty takes those of the shapes world."""
    judge: str = ""
    """Held-out scorer of the evaluation; empty takes the simulated rater's noise-free taste."""
    evaluate_prompts: int = 60
    """Held-out prompts of the evaluation after each round; 0 evaluates nothing."""
    evaluate_file: str = ""
    """File of held-out prompts; empty takes those of the shapes world."""
    seeds: int = 2
    """Pictures of each of them and each model."""
    seed: int = 0
    """Seed of everything."""

    def __post_init__(self) -> None:
        """Check ranges and what must fit together.

        Raises:
            LoopError: as said.
        """
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                raise LoopError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(words)}")
        floors = {"votes": 2, "candidates": 0, "steps": 1, "evaluate_prompts": 0, "seeds": 2, "seed": 0}
        floors["learning_rate"] = 0
        for name, least in floors.items():
            if getattr(self, name) < least:
                raise LoopError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if 0 < self.candidates < self.votes:
            raise LoopError(f"candidates is {self.candidates}, fewer than the {self.votes} votes of a round")
        if self.choose in ("disagreement", "entropy", "routed") and not self.scorers:
            raise LoopError(f"choosing by {self.choose} needs scorers: name them with --scorer")
        self._check_world()

    def _check_world(self) -> None:
        if self.rater == "simulated":
            from diffalign.world.raters import named_rater

            named_rater(self.taste)
            if self.prompts:
                raise LoopError("the simulated rater knows the shapes world only: leave --prompts out")
        if self.pipeline in RECIPES or (self.rater == "simulated" and self.recipe):
            return
        if not self.recipe:
            raise LoopError(
                f"no settings are known for {self.pipeline}: name a --recipe (diffalign recipes list)"
            )
        if not self.prompts:
            raise LoopError(f"{self.pipeline} is not of the shapes world: name a file of training --prompts")
        if self.judges and self.evaluate_prompts and not self.evaluate_file:
            raise LoopError(f"{self.pipeline} is not of the shapes world: name an --evaluate-file of prompts")

    @property
    def pool(self) -> int:
        """Pairs that are drawn in each round."""
        return self.candidates or (self.votes if self.choose == "random" else 2 * self.votes)

    @property
    def judges(self) -> list[str]:
        """Held-out judges; none where a person votes and names none."""
        if self.judge:
            return [self.judge]
        return [f"shapes-{self.taste}"] if self.rater == "simulated" else []


@dataclass(frozen=True, kw_only=True)
class RoundFolder:
    """Where one round's files are."""

    root: Path

    @property
    def results(self) -> Path:
        """The pairs that are voted on, as a folder of results."""
        return self.root / "results"

    @property
    def settled(self) -> Path:
        """The pairs that scorers settled, as results with their votes."""
        return self.root / "settled"

    @property
    def gallery(self) -> Path:
        """What a person opens."""
        return self.root / "gallery.html"

    @property
    def votes(self) -> Path:
        """Folder of votes, any number of .jsonl files; nothing in it is ever changed or removed."""
        return self.root / "votes"

    @property
    def data(self) -> Path:
        """The preferences that the votes became."""
        return self.root / "data"

    @property
    def run(self) -> Path:
        """The training run."""
        return self.root / "run"

    def ballots(self) -> list[Path]:
        """Files of the rater's or raters' votes, sorted by name."""
        return sorted(self.votes.glob("*.jsonl"))

    def vote_files(self) -> list[Path]:
        """The same, and the file of what scorers settled."""
        return [*self.ballots(), *self.settled.glob("votes.jsonl")]

    def pictures(self) -> list[Path]:
        """Folders of results that were voted on."""
        return [folder for folder in (self.results, self.settled) if (folder / NAME).is_file()]


def claim(folder: Path, options: LoopOptions) -> None:
    """Write the options into a new folder, or check that an old one was begun with the same.

    Raises:
        LoopError: the folder was begun with other options, or is none of a loop.
    """
    from diffalign.evaluate.report import write_atomic

    file, wanted = folder / FILE, _plain(options)
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        differ = [k for k in wanted if found.get(k) != wanted[k]]
        if differ:
            name = differ[0]
            raise LoopError(
                f"{folder} was begun with {name} {found.get(name)!r}, not {wanted[name]!r}: give the same "
                "options to go on, or another --output"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise LoopError(f"{folder} is not empty and no loop: choose another --output")
    else:
        write_atomic(file, json.dumps(wanted, indent=1) + "\n")


def _plain(options: LoopOptions) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(options)))
    return plain
