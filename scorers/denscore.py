"""Denscore: long prompts by their sentences, without the direction that all prompts share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers import catalogue
from scorers.clip_hf import ClipHfScorer
from scorers.load_options import LoadOptions, PictureOptions
from scorers.loading import read_state
from scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

DIRECTION = "direction.safetensors"


@dataclass(frozen=True, kw_only=True)
class DenscoreOptions(PictureOptions):
    """What may be chosen of a Denscore."""

    keep: float = 0.3
    """Share of the common direction that stays, in [0, 1]."""


@catalogue.register("denscore")
class Denscore(ClipHfScorer):
    """<t', picture>, with t' = t - (1 - keep) <t, o> o, t the mean unit feature of a prompt's sentences.

    The published code takes the common direction o from the batch at hand, so its scores depend on the batch.
    Here o is given: by ``direction.safetensors`` in the folder, or by ``with_direction``; without it t' = t.

    Args:
        clip: the model; it is put into evaluation mode and frozen.
        tokenizer: its tokenizer.
        preprocess: transform of the pictures.
        direction: (D,) common direction of all prompts; it is scaled to length 1.
        keep: share of the common direction that stays, in [0, 1].
    """

    name = "denscore"
    range = (-1.5, 1.5)
    temperature = 0.01
    licence = "Apache-2.0"
    citation = "Liu et al., Improving Long-Text Alignment for Text-to-Image Models, 2024, arXiv:2410.11817"
    weights = "folder of a CLIPModel with its tokenizer, e.g. luping-liu/Denscore; direction.safetensors"
    option_type: ClassVar[type[LoadOptions]] = DenscoreOptions

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        preprocess: Preprocess | None = None,
        *,
        direction: Tensor | None = None,
        keep: float = 0.3,
    ) -> None:
        """See the class.

        Raises:
            ValueError: ``keep`` outside [0, 1], or a direction of another width or of length 0.
        """
        super().__init__(clip, tokenizer, preprocess)
        self.with_keep(keep)
        self.direction: Tensor | None = None
        if direction is not None:
            self.with_direction(direction)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """See ClipHfScorer; ``direction.safetensors`` in the folder is the common direction."""
        scorer = super().load(weights, device=device, dtype=dtype)
        file = None if weights is None else weights / DIRECTION
        return scorer if file is None or not file.is_file() else scorer.with_direction(_direction(file))

    def take_options(self, options: LoadOptions) -> None:
        """See ScorerBase."""
        super().take_options(options)
        if isinstance(options, DenscoreOptions):
            self.with_keep(options.keep)

    def with_keep(self, keep: float) -> Self:
        """Choose how much of the common direction is kept; returns the scorer.

        Raises:
            ValueError: outside [0, 1].
        """
        if not 0 <= keep <= 1:
            raise ValueError(f"keep is a share in [0, 1], got {keep}")
        self.keep = keep
        return self

    def with_direction(self, direction: Tensor) -> Self:
        """Take the common direction o (D,) of all prompts; returns the scorer.

        Raises:
            ValueError: another width, or of length 0.
        """
        width = int(self.clip.config.projection_dim)
        if direction.shape != (width,) or not float(direction.norm()) > 0:
            raise ValueError(
                f"a direction is a vector of {width} numbers, not all 0; got {tuple(direction.shape)}"
            )
        self.direction = F.normalize(direction.detach().float(), dim=0).to(self.device)
        return self

    @torch.no_grad()
    def fit_direction(self, prompts: Sequence[str]) -> Tensor:
        """(D,) common direction of prompts: their mean, at length 1. Take some hundred of a kind.

        Raises:
            ValueError: no prompts.
        """
        if not prompts:
            raise ValueError("the common direction of no prompts is unknown; give some hundred")
        return F.normalize(self.encode_dense(prompts).mean(0), dim=0)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(B, D) float32 t' of B prompts; not of unit length."""
        return reweigh(self.encode_dense(prompts), self.direction, self.keep)

    def encode_dense(self, prompts: Sequence[str]) -> Tensor:
        """(B, D) float32 mean of the unit features of each prompt's sentences; remembered while frozen."""
        return self.texts.features(prompts, self._dense, self.text_weights())

    def describe(self) -> dict[str, str]:
        """See ScorerBase; with what is done to the common direction."""
        done = "none" if self.direction is None else f"keep {self.keep:g}"
        return super().describe() | {"direction": done}

    def _dense(self, prompts: list[str]) -> Tensor:
        parts = [sentences(prompt) for prompt in prompts]
        found = self.token_features(self.tokenize([s for part in parts for s in part]))
        return torch.stack([rows.mean(0) for rows in found.split([len(part) for part in parts])])


def reweigh(text: Tensor, direction: Tensor | None, keep: float) -> Tensor:
    """Take 1 - keep of a common direction (D,) of length 1 out of features (B, D)."""
    if direction is None:
        return text
    o = direction.to(text)
    return text - (1 - keep) * (text @ o)[:, None] * o


def sentences(prompt: str) -> list[str]:
    """Sentences of a prompt: split behind ., ! and ? before white space, and at line ends."""
    parts = (part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", prompt))
    return [part for part in parts if part] or [prompt]


def _direction(file: Path) -> Tensor:
    state = read_state(file)
    if state.keys() != {"direction"}:
        raise ValueError(
            f"{file} holds {', '.join(state) or 'nothing'}; it must hold one tensor called direction"
        )
    return state["direction"]
