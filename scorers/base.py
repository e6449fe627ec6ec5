"""Thin base of the scorers that ship here: any pictures in, broadcast prompts, chunks, one output."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scorers.images import ImageLike, to_tensors
from scorers.protocol import Kind, Need, ScoreOutput, Space


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

    @abstractmethod
    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are (the CPU if there are none)."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompts: str | Sequence[str] | None = None,
        *,
        chunk: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> ScoreOutput:
        """Score pictures without gradients.

        Args:
            images: n pictures of any sizes and kinds, see ``scorers.images``.
            prompts: one prompt for all of them or n prompts; None where the scorer needs none.
            chunk: how many pictures go through the network at once.
            value_range: meaning of float pictures.

        Raises:
            ValueError: as many prompts as pictures are needed, or one; a bad picture; ``chunk`` below 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        pictures = to_tensors(images, value_range)
        texts = broadcast(prompts, len(pictures), needed="prompt" in self.needs)
        score = torch.empty(len(pictures))
        with torch.no_grad():
            for rows in _chunks(pictures, chunk):
                x01 = torch.stack([pictures[i] for i in rows]).to(self.device)
                score[rows] = self.score_tensor(x01, [texts[i] for i in rows]).float().cpu()
        return ScoreOutput(score=score, meta=self.describe())

    def describe(self) -> dict[str, str]:
        """Which scorer this is, for the record."""
        dtype = next((str(p.dtype).removeprefix("torch.") for p in self.parameters()), "float32")
        return {"scorer": self.name, "version": self.version, "dtype": dtype}


def broadcast(prompts: str | Sequence[str] | None, n: int, *, needed: bool = True) -> list[str]:
    """Return n prompts from one or from n.

    Raises:
        ValueError: another number of prompts, or None where prompts are needed.
    """
    if prompts is None:
        if needed:
            raise ValueError("this scorer compares pictures with prompts: give one prompt, or one per image")
        return [""] * n
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(texts) not in (1, n):
        raise ValueError(
            f"{n} images but {len(texts)} prompts; give one prompt for all images or {n} prompts"
        )
    return texts * n if len(texts) == 1 else texts


def check_batch(x01: Tensor, prompts: Sequence[str]) -> None:
    """Check the arguments of ``score_tensor``.

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


def _chunks(pictures: Sequence[Tensor], chunk: int) -> list[list[int]]:
    """Row numbers in chunks of pictures that have the same size."""
    sizes: dict[torch.Size, list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        sizes[picture.shape].append(i)
    return [rows[i : i + chunk] for rows in sizes.values() for i in range(0, len(rows), chunk)]
