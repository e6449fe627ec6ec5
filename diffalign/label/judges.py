"""Scorers that label data, each with a digest of what it is, by which its scores are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import scorers
from diffalign.assets import asset
from diffalign.data.keys import content_key
from diffalign.data.records import DataError
from scorers.base import ScorerBase
from scorers.client import RemoteScorer
from scorers.protocol import Scorer

RESERVED = ("smpo", "phi", "calibrated", "front")
"""Names of labels made of scores, which no scorer may have."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A loaded scorer."""

    name: str
    scorer: Scorer
    id: str
    """Digest of name, version, options and weights, those of a reward server too."""
    device: str | torch.device = "cpu"

    @torch.no_grad()
    def score(self, x01: Tensor, prompts: Sequence[str]) -> list[float]:
        """Scores of (B, 3, H, W) pictures in [0, 1] for B prompts, higher is better.

        Raises:
            DataError: a score that is not finite.
        """
        found = self.scorer.score_tensor(x01.to(self.device), list(prompts)).cpu().double()
        if not found.isfinite().all():
            raise DataError(f"scorer {self.name}: a score is not finite; look at its weights and precision")
        better: Tensor = found if self.scorer.higher_better else -found
        return [float(v) for v in better]


def own_device(rank: int = 0) -> str:
    """Where this process scores fastest: the GPU of its number, Apple's, else the CPU."""
    if torch.cuda.is_available():
        return f"cuda:{rank % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_judge(spec: str, device: str | torch.device = "cpu", *, allow_hub: bool = False) -> Judge:
    """Load a scorer given in one word, ``name=weights?option=value&...``; see ``scorers.Spec``.

    Raises:
        RegistryError: no scorer has this name.
        FileNotFoundError: its weights are not there.
        ValueError: an option that it does not have.
        DataError: its name is that of a label, or it does not judge pictures one by one.
    """
    given = scorers.Spec.parse(spec)
    name = given.name
    if name in RESERVED:
        raise DataError(f"a scorer cannot be called {name!r}, which is the name of a label")
    weights = scorers.find_weights(name, asset(given.weights) if given.weights else None, allow_hub)
    scorer = scorers.load(name, weights, device, options=given.options)
    if scorer.kind != "pointwise" or scorer.space != "pixel":
        raise DataError(
            f"scorer {name} is {scorer.kind} in {scorer.space} space and has no score of one picture; see "
            "its compare, or take a pointwise one"
        )
    digest = "" if weights is None else _digest(weights)
    if isinstance(scorer, RemoteScorer):
        digest = scorer.identity
    options = [f"{key}={value}" for key, value in sorted(given.options.items())]
    known = content_key("scorer", name, scorer.version, digest, *options)
    return Judge(name=name, scorer=scorer, id=known, device=device)


def refuse_unknown(specs: Sequence[str]) -> None:
    """See that scorers of these names exist, before anything else is read or loaded.

    Raises:
        RegistryError: one does not; the message suggests near names.
    """
    for spec in map(scorers.Spec.parse, specs):
        if not spec.remote:
            scorers.catalogue.get(spec.name)


def refuse_prompts(specs: Sequence[str], prompts: Sequence[str]) -> None:
    """See that scorers which know some prompts only know these; the others are not even loaded.

    Raises:
        DataError: names the scorer and the prompt.
    """
    for spec in (s for s in map(scorers.Spec.parse, specs) if not s.remote):
        loader = scorers.catalogue.get(spec.name)
        check = getattr(getattr(loader, "about", loader), "check_prompts", ScorerBase.check_prompts)
        if check is ScorerBase.check_prompts:
            continue
        try:
            load_judge(str(spec)).scorer.check_prompts(prompts)  # type: ignore[attr-defined]
        except (ValueError, KeyError) as error:
            raise DataError(f"scorer {spec.name} cannot judge these prompts: {error}") from error


def fetch_weights(specs: Sequence[str]) -> None:
    """Download what these scorers lack, where it is published; see ``scorers.find_weights``."""
    for spec in map(scorers.Spec.parse, specs):
        if spec.weights is None:
            scorers.find_weights(spec.name, allow_hub=True)


def load_judges(
    specs: Sequence[str], device: str | torch.device = "cpu", *, allow_hub: bool = False
) -> list[Judge]:
    """Load several scorers.

    Raises:
        DataError: none, or one twice.
    """
    names = [scorers.Spec.parse(spec).name for spec in specs]
    if not names:
        raise DataError("no scorer is named; add --scorer NAME (diffalign scorers list)")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"scorer {twice[0]!r} is named twice; its scores could not be told apart")
    return [load_judge(spec, device, allow_hub=allow_hub) for spec in specs]


def _digest(weights: Path) -> str:
    """Digest of the bytes of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(f for f in weights.rglob("*") if f.is_file()) if weights.is_dir() else [weights]:
        digest.update(str(file.relative_to(weights)).encode())
        with open(file, "rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()
