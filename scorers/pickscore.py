"""PickScore, and every CLIP-type scorer of its form: exp(logit_scale) * cos(picture, prompt)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from scorers import catalogue
from scorers.clip_hf import ClipHfScorer, cast_towers, find_clip, limits, load_clip, load_tokenizer
from scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

Normalise = Literal["none", "cos", "div26"]


@catalogue.register("pickscore")
class PickScore(ClipHfScorer):
    """Two-tower scorer on a transformers CLIPModel.

    The towers run in the precision they are in; features are normalised and multiplied in float32. Text
    features of frozen towers are remembered (the 4096 prompts used last). ``compare`` gives PickScore's
    softmax over the two pictures, in every unit of the score.

    Args:
        clip: the model; it is put into evaluation mode and frozen.
        tokenizer: its tokenizer; the longest prompt is the shorter of both their limits.
        preprocess: transform of the pictures; None is CLIP's at the size of the vision tower.
        normalise: unit of the score: ``"none"`` as published, ``"cos"`` the cosine, ``"div26"`` the published
            score over 26, as Flow-GRPO has it.
    """

    name = "pickscore"
    range = (-100.0, 100.0)
    licence = "code MIT; no licence is stated for the published weights"
    citation = "Kirstain et al., Pick-a-Pic: An Open Dataset of User Preferences, 2023, arXiv:2305.01569"
    weights = "folder of a CLIPModel with its tokenizer, e.g. yuvalkirstain/PickScore_v1"

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        preprocess: Preprocess | None = None,
        normalise: Normalise = "none",
    ) -> None:
        """See the class.

        Raises:
            ValueError: unknown ``normalise``.
        """
        super().__init__(clip, tokenizer, preprocess)
        if normalise not in ("none", "cos", "div26"):
            raise ValueError(f"normalise must be 'none', 'cos' or 'div26', not {normalise!r}")
        self.normalise = normalise
        units = {"none": 1.0, "div26": 26.0, "cos": float(self.scale().detach())}[normalise]  # of the score
        self.temperature = 1 / units
        self.range = (-1.0, 1.0) if normalise == "cos" else (-100 / units, 100 / units)

    @classmethod
    def load(
        cls,
        weights: Path | None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        normalise: Normalise = "none",
    ) -> PickScore:
        """Load a folder that holds a saved CLIPModel and its tokenizer, or a file of the published sizes.

        Raises:
            FileNotFoundError: nothing given or found, or a file is missing in the folder.
            ValueError: the weights do not fit the configuration key by key.
        """
        path = find_clip(cls.name, weights, cls.weights)
        clip = load_clip(path)
        cast_towers(clip, dtype)
        preprocess = Preprocess.load(path, limits(clip).side)
        return cls(clip, load_tokenizer(path, clip), preprocess, normalise).to(device)

    def scaled(self, cosines: Tensor) -> Tensor:
        """See TwoTower."""
        if self.normalise == "cos":
            return cosines
        return cosines * self.scale() / (26 if self.normalise == "div26" else 1)
