"""Axioms that every scorer should obey: a picture beats its damaged copy, and itself under a wrong prompt."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.data.records import BytesImage, DataError, ImageSource, Record
from diffalign.data.transform import decode
from diffalign.diffusion.corrupt import draw_seed
from diffalign.evaluate.stats import ALPHA, Interval, bootstrap
from diffalign.label.contrast import Contrast, Distorted, WrongCaption
from diffalign.label.judges import Judge

AXIOMS = ("blurred", "noised", "recompressed", "wrong prompt")
"""What the original has to beat."""


@dataclass(frozen=True, kw_only=True)
class AxiomOptions:
    """How scorers are examined."""

    format: str = "auto"
    """Format of the data."""
    cases: int = 200
    """Pictures that are taken, at most; each of them is one case of every axiom."""
    strength: float = 0.5
    """How much pictures are blurred and noised, in (0, 1]; see the contrast ``distorted``."""
    quality: int = 10
    """JPEG quality of the recompressed pictures, 1 to 95."""
    batch: int = 32
    """Pictures that go through a scorer at once."""
    seed: int = 0
    """Of the choice of pictures, noises and wrong prompts."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.cases < 1 or self.batch < 1:
            raise DataError(f"cases is {self.cases} and batch {self.batch}; both must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Recompressed(Contrast):
    """The loser is the winner's picture, saved as a poor JPEG."""

    quality: int = 10
    """JPEG quality, 1 to 95."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 1 <= self.quality <= 95:
            raise DataError(f"quality is {self.quality}; it must be between 1 and 95")

    def prompts(self, prompt: str, others: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
        """See Contrast."""
        return prompt, prompt

    def spoil(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        """See Contrast."""
        file = io.BytesIO()
        Image.fromarray(_pixels(picture)).save(file, "JPEG", quality=self.quality)
        return _tensor(file.getvalue(), "recompressed picture")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A picture with its prompt."""

    prompt: str
    image: ImageSource

    def picture(self) -> Tensor:
        """(3, H, W) in [0, 1].

        Raises:
            BadImageError: it cannot be read.
        """
        return _tensor(self.image.read(), self.image.where)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """How often one scorer obeys one axiom."""

    scorer: str
    axiom: str
    share: Interval
    """Share of cases in which the original scores higher, equal scores counting half; resampled by prompt."""
    cases: int


def contrasts_of(options: AxiomOptions) -> dict[str, Contrast]:
    """What is done to the original, by axiom."""
    return {
        "blurred": Distorted(kind="blur", strength=options.strength),
        "noised": Distorted(kind="noise", strength=options.strength),
        "recompressed": Recompressed(quality=options.quality),
        "wrong prompt": WrongCaption(),
    }


def axiom_cases(records: Sequence[Record], options: AxiomOptions) -> list[Case]:
    """Different pictures of preferences, under their prompts, in random order, as many as are asked for.

    Raises:
        DataError: fewer than two prompts, so that none is wrong.
    """
    every: dict[tuple[str, ImageSource], Case] = {}
    for record in records:
        for i, image in enumerate(record.images):
            case = Case(prompt=record.prompt_of(i), image=image)
            every.setdefault((case.prompt, image), case)
    cases = list(every.values())
    if len({case.prompt for case in cases}) < 2:
        raise DataError("axioms need pictures of two prompts at least, or no prompt would be a wrong one")
    order = np.random.default_rng([options.seed, 7]).permutation(len(cases))[: options.cases]
    return [cases[i] for i in order]


def examine(
    judges: Sequence[Judge],
    cases: Sequence[Case],
    options: AxiomOptions,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Finding]:
    """Let every scorer compare the originals with what became of them.

    Args:
        judges: scorers of single pictures.
        cases: originals.
        options: see AxiomOptions.
        progress: called with the number of cases done.

    Returns:
        A finding for each scorer and axiom.

    Raises:
        DataError: a picture that cannot be read, or a score that is not finite.
    """
    wins: dict[tuple[str, str], list[float]] = {(j.name, a): [] for j in judges for a in AXIOMS}
    others = sorted({case.prompt for case in cases})
    for start in range(0, len(cases), options.batch):
        some = cases[start : start + options.batch]
        originals = [case.picture() for case in some]
        spoilt = {
            axiom: [
                _spoilt(c, x, contrast, others, options.seed) for c, x in zip(some, originals, strict=True)
            ]
            for axiom, contrast in contrasts_of(options).items()
        }
        for judge in judges:
            best = _scores(judge, [(x, c.prompt) for x, c in zip(originals, some, strict=True)])
            for axiom, rows in spoilt.items():
                gaps = best - _scores(judge, rows)
                wins[judge.name, axiom] += (0.5 + 0.5 * np.sign(gaps)).tolist()
        progress(start + len(some))
    prompts = [case.prompt for case in cases]
    return [
        Finding(scorer=name, axiom=axiom, share=share_by_prompt(found, prompts), cases=len(found))
        for (name, axiom), found in wins.items()
    ]


def axiom_pairs(cases: Sequence[Case], options: AxiomOptions) -> list[Record]:
    """The same comparisons as pairs to train on: the original is preferred; one for each case and axiom.

    The wrong prompt makes a pair of the same picture twice, each with a prompt of its own.

    Raises:
        DataError: a picture that cannot be read.
    """
    others, records = sorted({case.prompt for case in cases}), []
    for case in cases:
        original = case.picture()
        for axiom, contrast in contrasts_of(options).items():
            picture, prompt = _spoilt(case, original, contrast, others, options.seed)
            where = f"{axiom}: {case.image.where}"
            images = tuple(BytesImage.from_array(_pixels(x), where) for x in (original, picture))
            prompts = (case.prompt, prompt) if prompt != case.prompt else None
            records.append(
                Record(
                    prompt=case.prompt, images=images, kind="pair", values=(1.0, 0.0), prompts=prompts,
                    rater="axioms", source=where,
                )
            )  # fmt: skip
    return records


def share_by_prompt(outcomes: Sequence[float], prompts: Sequence[str]) -> Interval:
    """Mean of outcomes in [0, 1] with its 95 % interval, resampling prompts (a prompt's mean is one draw).

    Where every outcome is 0 or every one is 1, the interval is the exact binomial one with a trial a prompt.

    Raises:
        ValueError: not one prompt for each outcome, or none.
    """
    if len(outcomes) != len(prompts) or not prompts:
        raise ValueError(f"{len(outcomes)} outcomes of {len(prompts)} prompts; give one of each")
    kinds: dict[str, list[float]] = {}
    for outcome, prompt in zip(outcomes, prompts, strict=True):
        kinds.setdefault(prompt, []).append(outcome)
    (found,) = bootstrap(np.array([[float(np.mean(v))] for v in kinds.values()]))
    edge = (ALPHA / 2) ** (1 / len(kinds))
    if found.value in (0.0, 1.0):
        low, high = (0.0, 1 - edge) if found.value == 0 else (edge, 1.0)
        return Interval(value=found.value, low=low, high=high)
    return found


def _spoilt(
    case: Case, original: Tensor, contrast: Contrast, others: Sequence[str], seed: int
) -> tuple[Tensor, str]:
    """Picture and prompt of the loser, the same at each call."""
    rng = np.random.default_rng(
        draw_seed("axiom", seed, type(contrast).__name__, case.prompt, case.image.where)
    )
    _, prompt = contrast.prompts(case.prompt, others, rng)
    return contrast.spoil(original, rng), prompt


def _scores(judge: Judge, rows: Sequence[tuple[Tensor, str]]) -> np.ndarray:
    """(n,) scores of pictures of any sizes; those of one size go together."""
    sizes: dict[torch.Size, list[int]] = {}
    for i, (picture, _) in enumerate(rows):
        sizes.setdefault(picture.shape, []).append(i)
    out = np.empty(len(rows))
    for mine in sizes.values():
        out[mine] = judge.score(torch.stack([rows[i][0] for i in mine]), [rows[i][1] for i in mine])
    return out


def _tensor(data: bytes, where: str) -> Tensor:
    return torch.from_numpy(np.asarray(decode(data, where)).copy()).permute(2, 0, 1).float() / 255


def _pixels(picture: Tensor) -> np.ndarray:
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
