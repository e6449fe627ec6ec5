"""Thin base of the scorers that ship here: any pictures in, broadcast prompts, chunks, one output."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import ClassVar, Self, cast

import torch
from torch import Tensor, nn

from scorers.gather import either, gather
from scorers.hub import HubFiles
from scorers.images import ImageLike, to_tensors
from scorers.load_options import LoadOptions, PictureOptions
from scorers.preprocess import Mode, Transform
from scorers.protocol import Details, Kind, Need, PairOutput, ScoreOutput, Space


class ScorerBase(nn.Module):
    """Pointwise scorer of pictures. Subclasses set the attributes and write ``score_tensor``."""

    name: str
    version: str = "1"
    dims: tuple[str, ...] = ("preference",)
    range: tuple[float, float] = (-float("inf"), float("inf"))
    higher_better: bool = True
    needs: frozenset[Need] = frozenset({"prompt"})
    kind: Kind = "pointwise"
    space: Space = "pixel"
    differentiable: bool = True
    licence: str
    citation: str
    weights: str = ""
    """What must be had to load it, for lists; empty if nothing is."""
    size: str = ""
    """How large it is, for lists, e.g. ``"986 M"``."""
    temperature: float = 1.0
    """Difference of scores that is one unit of the logit in ``compare``."""
    tie_threshold: float | None = None
    """``compare`` calls a tie where |2 prob - 1| is at most this; None never does."""
    preprocess: Transform | None = None
    """Transform of the pictures before the tower, for scorers that have one."""
    hub: ClassVar[tuple[HubFiles, ...]] = ()
    """Where the weights are published as tensors; see ``scorers.hub``."""
    option_type: ClassVar[type[LoadOptions]] = LoadOptions
    """What may be chosen in ``scorers.load(..., options=...)``."""
    options_taken: LoadOptions = LoadOptions()
    """What was chosen."""

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that this scorer cannot judge, before a picture is made for them.

        Raises:
            ValueError: names the first one.
        """

    @abstractmethod
    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable."""

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Score as ``score_tensor`` does in every one of ``dims``: (B,) float32 each, the main one first."""
        return {self.dims[0]: self.score_tensor(x01, prompts)}

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """All that the scorer says of B pictures. Override it where there is more than scores."""
        if len(self.dims) == 1:
            return Details(score=self.score_tensor(x01, prompts))
        dims = self.score_dims(x01, prompts)
        return Details(score=dims[self.dims[0]], dims=dims)

    def cross_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score M pictures with each of N prompts: (M, N) float32, differentiable.

        Scorers with two towers override it, so that each picture and each prompt is encoded once.
        """
        return torch.stack([self.score_tensor(x01, [prompt] * len(x01)) for prompt in prompts], 1)

    @property
    def device(self) -> torch.device:
        """Where the parameters are (the CPU if there are none)."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike] | Sequence[Sequence[ImageLike]],
        prompts: str | Sequence[str] | None = None,
        *,
        chunk: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
        cross: bool = False,
    ) -> ScoreOutput:
        """Score pictures without gradients.

        Args:
            images: n pictures of any sizes and kinds, see ``scorers.images``; or groups of them, lists in a
                list, each group for one prompt.
            prompts: one prompt for all of them, or one for each picture or group; None where the scorer needs
                none.
            chunk: how many pictures go through the network at once.
            value_range: meaning of float pictures.
            cross: score every picture with every prompt, of any number: ``score`` is (n, N).

        Raises:
            ValueError: as many prompts as pictures (or groups) are needed, or one; an empty prompt; a bad
                picture; an empty group; ``chunk`` below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        needed = "prompt" in self.needs
        flat, groups = _ungrouped(images)
        pictures = to_tensors(flat, value_range)
        if cross:
            return self._output(gather(self._crossed(pictures, _listed(prompts), chunk)), groups)
        if groups is None:
            texts = broadcast(prompts, len(pictures), needed=needed)
        else:
            each = broadcast(prompts, groups[-1] + 1, needed=needed, what="groups")
            texts = [each[group] for group in groups]
        return self._output(gather(self._detailed(pictures, texts, chunk)), groups)

    def compare(
        self,
        a: ImageLike | Sequence[ImageLike],
        b: ImageLike | Sequence[ImageLike],
        prompts: str | Sequence[str] | None = None,
        *,
        chunk: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> PairOutput:
        """Compare n pictures with n others: how likely is the first of each pair to be preferred?

        Raises:
            ValueError: not as many pictures on both sides, or see ``__call__``.
        """
        first, second, texts = self.paired(a, b, prompts, value_range)
        return self.pair(*(self(x, texts, chunk=chunk) for x in (first, second)))

    def paired(
        self,
        a: ImageLike | Sequence[ImageLike],
        b: ImageLike | Sequence[ImageLike],
        prompts: str | Sequence[str] | None,
        value_range: tuple[float, float],
    ) -> tuple[list[Tensor], list[Tensor], list[str]]:
        """Both sides of n pairs as (3, H, W) tensors in [0, 1], and a prompt for each.

        Raises:
            ValueError: see ``compare``.
        """
        first, second = to_tensors(a, value_range), to_tensors(b, value_range)
        if len(first) != len(second):
            raise ValueError(f"{len(first)} pictures cannot be compared with {len(second)}; give pairs")
        return first, second, broadcast(prompts, len(first), needed="prompt" in self.needs)

    def pair(self, a: ScoreOutput, b: ScoreOutput) -> PairOutput:
        """Turn the scores of both sides of B pairs into a comparison; override it for another calibration."""
        logit = (a.score - b.score) / (self.temperature if self.higher_better else -self.temperature)
        prob = logit.sigmoid()
        threshold = self.tie_threshold
        tie = None if threshold is None else ((2 * prob - 1).abs() <= threshold).float()
        return PairOutput(
            logit=logit, prob=prob, tie_prob=tie, status=either(a.status, b.status), meta=self.describe()
        )

    def with_preprocess(self, mode: Mode) -> Self:
        """Choose how pictures are resized, ``"tensor"`` or ``"exact"`` (see Transform); returns the scorer.

        Raises:
            ValueError: unknown mode, or the scorer has no transform to choose.
        """
        if self.preprocess is None:
            raise ValueError(f"scorer {self.name!r} has no transform of pictures to choose")
        self.preprocess = replace(self.preprocess, mode=mode)
        return self

    def take_options(self, options: LoadOptions) -> None:
        """Take the options of ``scorers.load``; scorers that have some of their own extend it.

        Raises:
            TypeError: they are another scorer's.
            ValueError: they do not go together.
        """
        if not isinstance(options, self.option_type):
            raise TypeError(f"{self.name} takes {self.option_type.__name__}, not {type(options).__name__}")
        if isinstance(options, PictureOptions):
            self.with_preprocess(options.preprocess)
        self.options_taken = options

    def describe(self) -> dict[str, str]:
        """Which scorer this is, for the record."""
        dtype = next((str(p.dtype).removeprefix("torch.") for p in self.parameters()), "float32")
        found = {"scorer": self.name, "version": self.version, "dtype": dtype}
        taken = self.options_taken
        found |= {f"option.{f.name}": str(getattr(taken, f.name)) for f in fields(taken)}
        return found if self.preprocess is None else found | {"preprocess": self.preprocess.id}

    def _output(self, found: Details, groups: list[int] | None) -> ScoreOutput:
        return ScoreOutput(
            score=found.score,
            dims=found.dims,
            raw=found.raw,
            std=found.std,
            status=None if found.status is None else tuple(found.status),
            meta=self.describe(),
            higher_better=self.higher_better,
            groups=None if groups is None else tuple(groups),
        )

    def _detailed(
        self, pictures: Sequence[Tensor], texts: Sequence[str], chunk: int
    ) -> Iterator[tuple[list[int], Details]]:
        for rows, x01 in self._stacks(pictures, chunk):
            with torch.no_grad():
                yield rows, self.details(x01, [texts[i] for i in rows])

    def _crossed(
        self, pictures: Sequence[Tensor], texts: Sequence[str], chunk: int
    ) -> Iterator[tuple[list[int], Details]]:
        for rows, x01 in self._stacks(pictures, chunk):
            with torch.no_grad():
                yield rows, Details(score=self.cross_tensor(x01, texts))

    def _stacks(self, pictures: Sequence[Tensor], chunk: int) -> Iterator[tuple[list[int], Tensor]]:
        """Row numbers and pictures of the same size, at most ``chunk`` at once."""
        sizes: dict[torch.Size, list[int]] = defaultdict(list)
        for i, picture in enumerate(pictures):
            sizes[picture.shape].append(i)
        for rows in sizes.values():
            for part in (rows[i : i + chunk] for i in range(0, len(rows), chunk)):
                yield part, torch.stack([pictures[i] for i in part]).to(self.device)


def broadcast(
    prompts: str | Sequence[str] | None, n: int, *, needed: bool = True, what: str = "images"
) -> list[str]:
    """Return n prompts from one or from n; ``what`` there are n of, for errors.

    Raises:
        ValueError: another number of prompts, or None or an empty one where prompts are needed.
    """
    if prompts is None:
        if needed:
            raise ValueError("this scorer compares pictures with prompts: give one prompt, or one per image")
        return [""] * n
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) not in (1, n):
        raise ValueError(
            f"{n} {what} but {len(texts)} prompts; give one prompt for all {what} or {n} prompts"
        )
    if needed:
        refuse_empty(texts)
    return texts * n if len(texts) == 1 else texts


def refuse_empty(prompts: Sequence[str]) -> None:
    """Check that every prompt says something.

    Raises:
        ValueError: an empty one, whose score would mean nothing.
    """
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise ValueError(f"prompt {i} is empty; a score needs to know what was asked for")


def check_batch(x01: Tensor, prompts: Sequence[str]) -> None:
    """Check the arguments of ``score_tensor``. Values of pixels are not looked at: that would stop a GPU.

    Raises:
        ValueError: not (B, 3, H, W) floats, or not B prompts.
    """
    if x01.ndim != 4 or x01.shape[1] != 3 or not x01.is_floating_point():
        raise ValueError(
            f"score_tensor needs floats (B, 3, H, W) in [0, 1], got {tuple(x01.shape)} {x01.dtype}"
        )
    if isinstance(prompts, str) or len(prompts) != len(x01):
        count = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(
            f"score_tensor needs a list of {len(x01)} prompts for {len(x01)} pictures, got {count}"
        )


def _ungrouped(
    images: ImageLike | Sequence[ImageLike] | Sequence[Sequence[ImageLike]],
) -> tuple[ImageLike | Sequence[ImageLike], list[int] | None]:
    """Pictures of all groups in a row, with the group of each; None where there are no groups."""
    if not isinstance(images, list | tuple) or not any(isinstance(part, list | tuple) for part in images):
        return cast("ImageLike | Sequence[ImageLike]", images), None
    for i, part in enumerate(images):
        if not isinstance(part, list | tuple) or not part:
            raise ValueError(
                f"pictures are given in groups, but group {i} is not a list of one picture or more"
            )
    numbers = [i for i, part in enumerate(images) for _ in part]
    return [image for part in images for image in part], numbers


def _listed(prompts: str | Sequence[str] | None) -> list[str]:
    """Prompts of a cross product, of which there must be one at least."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts or ())
    if not texts:
        raise ValueError("cross=True scores every picture with every prompt: give at least one prompt")
    refuse_empty(texts)
    return texts
