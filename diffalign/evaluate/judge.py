"""Judging paired pictures: scores by judge, verdicts, obedience, diversity, report and gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import scorers
from diffalign.evaluate.diversity import shrunk_diversity
from diffalign.evaluate.report import Report, Verdict, build_report
from diffalign.evaluate.stats import base_sd, compare
from diffalign.gallery.items import GalleryItem
from diffalign.gallery.write import write_gallery
from scorers.protocol import Scorer


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A scorer with its role in this evaluation."""

    name: str
    scorer: Scorer
    held_out: bool
    device: str | torch.device = "cpu"
    """Where the scorer computes, and so where it wants its pictures."""

    def score(self, pictures: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """(P, S) scores of (P, S, 3, H, W) uint8 pictures of P prompts."""
        return score(self.scorer, pictures, prompts, device=self.device)


def load_judges(
    held_out: Sequence[str], trained_on: Sequence[str], device: str | torch.device = "cpu"
) -> list[Judge]:
    """Load judges from ``name`` or ``name=weights`` strings, the primary (first held-out) one first.

    Raises:
        ValueError: no held-out judge, or one that is in both lists.
    """
    both = sorted(set(held_out) & set(trained_on))
    if both:
        raise ValueError(f"evaluate.judges: {both[0]!r} was trained on, so it cannot be held out as well")
    if not held_out:
        raise ValueError(
            "evaluate.judges is empty: name at least one held-out scorer (diffalign scorers list)"
        )
    return [_load(spec, True, device) for spec in held_out] + [
        _load(spec, False, device) for spec in trained_on
    ]


def _load(spec: str, held_out: bool, device: str | torch.device) -> Judge:
    from diffalign.assets import asset

    asked = scorers.Spec.parse(spec)
    weights = str(asset(asked.weights)) if asked.weights else None
    scorer = scorers.load(asked.name, weights, device=device, options=asked.options)
    return Judge(name=asked.name, scorer=scorer, held_out=held_out, device=device)


@torch.no_grad()
def score(
    scorer: Scorer,
    pictures: Tensor,
    prompts: Sequence[str],
    *,
    chunk: int = 64,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """(P, S) scores of (P, S, 3, H, W) uint8 pictures of P prompts; ``device`` is where the scorer is."""
    flat, texts = pictures.flatten(0, 1), [p for p in prompts for _ in range(pictures.shape[1])]
    parts = [
        scorer.score_tensor(flat[i : i + chunk].to(device).float() / 255, texts[i : i + chunk]).cpu()
        for i in range(0, len(flat), chunk)
    ]
    scores: np.ndarray = torch.cat(parts).double().reshape(pictures.shape[:2]).numpy()
    return scores


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Paired pictures of the base and one model, with every judge's scores."""

    prompts: Sequence[str]
    base_name: str
    model_name: str
    base: Tensor
    """(P, S, 3, H, W) uint8."""
    model: Tensor
    """(P, S, 3, H, W) uint8."""
    judges: Sequence[Judge]
    scores: dict[str, tuple[np.ndarray, np.ndarray]]
    """By judge: (P, S) scores of base and model."""
    others: Mapping[str, Tensor] = field(default_factory=dict)
    """Pictures of further columns of the gallery, by name; the report does not know them."""

    def beside(self, others: Mapping[str, Tensor]) -> Evaluation:
        """The same with further columns, (P, S, 3, H, W) uint8 pictures of the same prompts and seeds."""
        return replace(self, others={**self.others, **others})

    def report(self, tie_margin_sd: float = 0.25) -> Report:
        """Verdicts of all judges, obedience where the prompts are of the shapes world, and diversity."""
        verdicts = []
        for judge in self.judges:
            base, model = self.scores[judge.name]
            result = compare(base, model, sd=base_sd(base), tie_margin_sd=tie_margin_sd)
            verdicts.append(
                Verdict(model=self.model_name, metric=judge.name, held_out=judge.held_out, comparison=result)
            )
        return build_report(
            base=self.base_name,
            verdicts=verdicts,
            diversity={"base": _diversity(self.base), "model": _diversity(self.model)},
            obedience=obedience(self.base, self.model, self.prompts),
        )

    def items(self, most: int = 100) -> list[GalleryItem]:
        """Rows of the gallery, at most ``most`` prompts."""
        return [self._item(i) for i in range(min(most, len(self.prompts)))]

    def write_gallery(self, path: Path, report: Report, title: str) -> Path:
        """Write the gallery of base and model side by side; an older one of the same run is replaced."""
        return write_gallery(path, self.items(), report, title, overwrite=True)

    def _item(self, i: int) -> GalleryItem:
        pairs = {self.base_name: self.base[i], self.model_name: self.model[i]}
        pairs |= {name: pictures[i] for name, pictures in self.others.items()}
        images = {k: [p.permute(1, 2, 0).numpy() for p in v] for k, v in pairs.items()}
        scores = {
            j: {self.base_name: b[i].tolist(), self.model_name: m[i].tolist(), **self._of_others(j, i)}
            for j, (b, m) in self.scores.items()
        }
        return GalleryItem(prompt=self.prompts[i], images=images, scores=scores)

    def _of_others(self, judge: str, i: int) -> dict[str, list[float]]:
        """Scores of the further columns of a prompt by a judge."""
        scorer = next(j for j in self.judges if j.name == judge) if self.others else None
        return {
            name: scorer.score(pictures[i : i + 1], self.prompts[i : i + 1])[0].tolist()
            for name, pictures in self.others.items()
            if scorer is not None
        }


def evaluate_pictures(
    prompts: Sequence[str],
    base: Tensor,
    model: Tensor,
    judges: Sequence[Judge],
    base_name: str,
    model_name: str,
) -> Evaluation:
    """Score paired (P, S, 3, H, W) uint8 pictures by every judge."""
    scores = {j.name: (j.score(base, prompts), j.score(model, prompts)) for j in judges}
    return Evaluation(
        prompts=prompts,
        base_name=base_name,
        model_name=model_name,
        base=base,
        model=model,
        judges=judges,
        scores=scores,
    )


def obedience(base: Tensor, model: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Share of obedient pictures of base and model, empty where a prompt is not of the shapes world."""
    from diffalign.world.grammar import parse
    from diffalign.world.scorers import WorldScorer
    from diffalign.world.scorers import obedience as loader

    try:
        for prompt in prompts:
            parse(prompt)
    except ValueError:
        return {}
    scorer: WorldScorer = loader.load(None, device="cpu", dtype=torch.float32)
    return {
        "base": float(score(scorer, base, prompts).mean()),
        "model": float(score(scorer, model, prompts).mean()),
    }


def _diversity(pictures: Tensor) -> dict[str, float]:
    """Diversity between the seeds of a prompt, as means over prompts."""
    if pictures.shape[1] < 2:
        return {}
    found = shrunk_diversity(pictures.float() / 255)
    return {name: float(values.mean()) for name, values in found.items()}
