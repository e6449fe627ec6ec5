"""One call of ``diffalign score``: which of its commands is meant, and whether its options go together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffalign.label.at_scale import compare_paths, score_to_file
from diffalign.label.axioms_command import score_axioms
from diffalign.label.command import score_pictures, write_labels
from scorers import Spec


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What the command line says; options that would silently do nothing are refused.

    Raises:
        ValueError: two modes at once, an option of another mode, one set of weights for several scorers, or
            a scorer that is not written as one.
    """

    images: Sequence[str]
    scorers: Sequence[str]
    """In one word each, see ``scorers.Spec``."""
    prompt: str | None = None
    weights: str | None = None
    """Of a single scorer."""
    write: bool = False
    compare: bool = False
    axioms: bool = False
    pairs: str | None = None
    """Rule that makes pairs."""
    output: Path | None = None
    processes: int = 1
    batch: int | None = None
    """None is not given: 32."""
    workers: int | None = None
    """None is not given: 4."""
    allow_hub: bool = False

    def __post_init__(self) -> None:
        """Check that the options go together."""
        asked = self.modes
        if len(asked) > 1:
            raise ValueError(f"{' and '.join(asked)} are different commands; give one of them")
        if self.pairs is not None and not (self.write or self.axioms):
            raise ValueError("--pairs writes what was scored: add --write")
        if self.output is not None and self.compare:
            raise ValueError("--compare prints its verdict and writes nothing: leave --output out")
        to_file = self.output is not None and not asked
        if self.processes > 1 and not to_file:
            raise ValueError(
                "--processes share the scoring into a file: give --output, and none of the modes"
            )
        if self.workers is not None and not (to_file or self.compare):
            raise ValueError("--workers read ahead of --output and --compare; leave them out here")
        if len(self.scorers) > 1 and self.weights is not None:
            raise ValueError("--weights belong to one scorer; for several write --scorer name=weights")

    @property
    def modes(self) -> list[str]:
        """Which modes are given."""
        given = {"--axioms": self.axioms, "--write": self.write, "--compare": self.compare}
        return [name for name, asked in given.items() if asked]

    @property
    def specs(self) -> list[str]:
        """Scorers with their weights."""
        named = [Spec.parse(text) for text in self.scorers]
        return [str(s.with_weights(self.weights) if self.weights else s) for s in named]

    @property
    def data(self) -> list[str]:
        """Arguments of a pass over data, of which the batch is an option like the others."""
        if self.batch is None:
            return [*self.images]
        if any(a.startswith("batch=") for a in self.images):
            raise ValueError("--batch and batch= are the same; give one of them")
        return [*self.images, f"batch={self.batch}"]

    def lines(self) -> list[str]:
        """Do it, and say what came out."""
        specs, prompt, hub, batch = self.specs, self.prompt, self.allow_hub, self.batch or 32
        if self.axioms:
            return score_axioms(
                self.data, specs, prompt=prompt, pairs=self.pairs, output=self.output, allow_hub=hub
            )
        if self.write:
            return write_labels(self.data, specs, prompt, self.pairs, self.output, allow_hub=hub)
        ahead = self.workers or 4
        if self.compare:
            return compare_paths(self.images, specs, prompt, batch=batch, workers=ahead, allow_hub=hub)
        if self.output is None:
            return score_pictures(self.images, specs, prompt, batch=batch, allow_hub=hub)
        done = score_to_file(
            self.images, specs, prompt, self.output, processes=self.processes, batch=batch, workers=ahead,
            allow_hub=hub,
        )  # fmt: skip
        return [done]
