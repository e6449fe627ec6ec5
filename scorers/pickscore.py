"""PickScore, and every CLIP-type scorer of its form: exp(logit_scale) * cos(picture, prompt)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from torch import Tensor

from scorers import catalogue
from scorers.clip_hf import ClipHfScorer
from scorers.hub import HubFiles
from scorers.load_options import LoadOptions, PictureOptions
from scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

Normalise = Literal["none", "cos", "div26"]
CLIP_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@dataclass(frozen=True, kw_only=True)
class PickScoreOptions(PictureOptions):
    """What may be chosen of a PickScore."""

    normalise: Normalise = "none"
    """Unit of the score: as published, the bare cosine, or the published score over 26."""


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
    hub = (
        HubFiles("yuvalkirstain/PickScore_v1", ("config.json", "model.safetensors")),
        HubFiles(
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", (*CLIP_TOKENIZER, "preprocessor_config.json")
        ),  # PickScore has no tokenizer of its own
    )
    option_type: ClassVar[type[LoadOptions]] = PickScoreOptions

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
        self.with_unit(normalise)

    def take_options(self, options: LoadOptions) -> None:
        """See ScorerBase."""
        super().take_options(options)
        if isinstance(options, PickScoreOptions):
            self.with_unit(options.normalise)

    def with_unit(self, normalise: Normalise) -> Self:
        """Choose the unit of the score; returns the scorer.

        Raises:
            ValueError: unknown unit.
        """
        if normalise not in ("none", "cos", "div26"):
            raise ValueError(f"normalise must be 'none', 'cos' or 'div26', not {normalise!r}")
        self.normalise = normalise
        units = {"none": 1.0, "div26": 26.0, "cos": float(self.scale().detach())}[normalise]  # of the score
        self.temperature = 1 / units
        self.range = (-1.0, 1.0) if normalise == "cos" else (-100 / units, 100 / units)
        return self

    def scaled(self, cosines: Tensor) -> Tensor:
        """See TwoTower."""
        if self.normalise == "cos":
            return cosines
        return cosines * self.scale() / (26 if self.normalise == "div26" else 1)
