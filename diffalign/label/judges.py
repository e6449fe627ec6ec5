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
from scorers.protocol import Scorer

RESERVED = ("smpo", "phi", "calibrated", "front")
"""Names of labels made of scores, which no scorer may have."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A loaded scorer."""

    name: str
    scorer: Scorer
    id: str
    """Digest of name, version and weights."""
    device: str | torch.device = "cpu"

    @torch.no_grad()
    def score(self, x01: Tensor, prompts: Sequence[str]) -> list[float]:
        """Scores of (B, 3, H, W) pictures in [0, 1] for B prompts, higher is better.

        Raises:
            DataError: a score that is not finite.
        """
        found = self.scorer.score_tensor(x01.to(self.device), list(prompts)).double().cpu()
        if not found.isfinite().all():
            raise DataError(f"scorer {self.name}: a score is not finite; look at its weights and precision")
        better: Tensor = found if self.scorer.higher_better else -found
        return [float(v) for v in better]


def load_judge(spec: str, device: str | torch.device = "cpu") -> Judge:
    """Load a scorer given as ``name`` or ``name=weights``.

    Raises:
        RegistryError: no scorer has this name.
        FileNotFoundError: its weights are not there.
        DataError: its name is that of a label, or it does not judge pictures one by one.
    """
    name, _, given = spec.partition("=")
    if name in RESERVED:
        raise DataError(f"a scorer cannot be called {name!r}, which is the name of a label")
    weights = scorers.find_weights(name, asset(given) if given else None)
    scorer = scorers.load(name, weights, device=device)
    if scorer.kind != "pointwise" or scorer.space != "pixel":
        raise DataError(
            f"scorer {name} is {scorer.kind} in {scorer.space} space; labels need pointwise pixel ones"
        )
    digest = "" if weights is None else _digest(weights)
    return Judge(
        name=name, scorer=scorer, id=content_key("scorer", name, scorer.version, digest), device=device
    )


def load_judges(specs: Sequence[str], device: str | torch.device = "cpu") -> list[Judge]:
    """Load several scorers.

    Raises:
        DataError: none, or one twice.
    """
    names = [spec.partition("=")[0] for spec in specs]
    if not names:
        raise DataError("no scorer is named; add --scorer NAME (diffalign scorers list)")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"scorer {twice[0]!r} is named twice; its scores could not be told apart")
    return [load_judge(spec, device) for spec in specs]


def _digest(weights: Path) -> str:
    """Digest of the bytes of a file, or of all files of a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(f for f in weights.rglob("*") if f.is_file()) if weights.is_dir() else [weights]:
        digest.update(str(file.relative_to(weights)).encode())
        with open(file, "rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest())
    return digest.hexdigest()
