"""CLIPScore: how well a picture shows its prompt, by a CLIP without any training on preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from scorers import catalogue
from scorers.clip_open import OpenClipScorer, Tokenize
from scorers.hub import HubFiles
from scorers.load_options import LoadOptions, PictureOptions
from scorers.preprocess import Preprocess, Transform

if TYPE_CHECKING:
    from open_clip import CLIP


@dataclass(frozen=True, kw_only=True)
class ClipScoreOptions(PictureOptions):
    """What may be chosen of a CLIPScore; None is the preset's."""

    prefix: str | None = None
    """Put before every prompt."""
    weight: float | None = None
    """Factor of the cosine."""
    clamp: bool | None = None
    """Raise negative cosines to 0, where the gradient then is 0."""


def _open_clip_files(repo: str) -> tuple[HubFiles, ...]:
    """Weights and sizes in open_clip's layout."""
    return (HubFiles(repo, ("open_clip_config.json", "open_clip_model.safetensors")),)


@catalogue.register("clipscore")
class ClipScore(OpenClipScorer):
    """weight * cos(picture, prefix + prompt), by any open_clip model with ViT towers.

    The class attributes are this preset's; ``clipscore-hessel`` and ``clipscore-torchmetrics`` have others.

    Args:
        model: the model.
        tokenize: see OpenClipScorer.
        prefix: put before every prompt.
        weight: factor of the cosine.
        clamp: raise negative cosines to 0, where the gradient then is 0.
    """

    name = "clipscore"
    architecture = "ViT-H-14"
    licence = "code Apache-2.0; that of the weights you bring"
    citation = "Hessel et al., CLIPScore, EMNLP 2021, arXiv:2104.08718"
    weights = "any open_clip checkpoint, e.g. laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
    hub: ClassVar[tuple[HubFiles, ...]] = _open_clip_files("laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    option_type: ClassVar[type[LoadOptions]] = ClipScoreOptions
    weight: float = 1.0
    clamp: bool = False

    def __init__(
        self,
        model: CLIP,
        tokenize: Tokenize | None = None,
        *,
        prefix: str | None = None,
        weight: float | None = None,
        clamp: bool | None = None,
    ) -> None:
        """See the class.

        Raises:
            ValueError: ``weight`` is not positive.
        """
        super().__init__(model, tokenize)
        self._form(prefix, weight, clamp)

    def take_options(self, options: LoadOptions) -> None:
        """See ScorerBase."""
        super().take_options(options)
        if isinstance(options, ClipScoreOptions):
            self._form(options.prefix, options.weight, options.clamp)

    def _form(self, prefix: str | None, weight: float | None, clamp: bool | None) -> None:
        """Set what the score is made of; None is the preset's."""
        self.prefix = type(self).prefix if prefix is None else prefix
        self.weight = type(self).weight if weight is None else weight
        self.clamp = type(self).clamp if clamp is None else clamp
        if self.weight <= 0:
            raise ValueError(f"the weight of the cosine must be positive, got {self.weight}")
        self.range = (0.0 if self.clamp else -self.weight, self.weight)
        self.temperature = 0.01 * self.weight

    def scaled(self, cosines: Tensor) -> Tensor:
        """See TwoTower."""
        return self.weight * (cosines.clamp(min=0) if self.clamp else cosines)

    def reference_score(
        self, x01: Tensor, prompts: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """RefCLIPScore: harmonic mean of the score and the best cosine of prompt and reference texts.

        Args:
            x01: (B, 3, H, W) pictures in [0, 1].
            prompts: B descriptions to be judged.
            references: B lists of descriptions that people wrote.

        Returns:
            (B,) float32; 0 where either is at most 0.

        Raises:
            ValueError: not one list per picture, or an empty one; or see ``score_tensor``.
        """
        if len(references) != len(x01) or not all(references):
            raise ValueError(f"give one reference text or more for each of the {len(x01)} pictures")
        text = self.encode_prompts(prompts)
        best = torch.stack(
            [(self.encode_prompts(r) @ t).max() for r, t in zip(references, text, strict=True)]
        )
        score, best = self.score_tensor(x01, prompts).clamp(min=0), best.clamp(min=0)
        return 2 * score * best / (score + best).clamp(min=1e-12)


@catalogue.register("clipscore-hessel")
class ClipScoreHessel(ClipScore):
    """The original: OpenAI's ViT-B/32, 2.5 * max(cos, 0), with a prefix before every prompt."""

    name = "clipscore-hessel"
    architecture = "ViT-B-32-quickgelu"
    licence = "MIT"
    weights = "OpenAI's ViT-B/32 in open_clip's layout, e.g. timm/vit_base_patch32_clip_224.openai"
    hub = _open_clip_files("timm/vit_base_patch32_clip_224.openai")
    size = "151 M"
    prefix = "A photo depicts "
    weight = 2.5
    clamp = True


@catalogue.register("clipscore-torchmetrics")
class ClipScoreTorchmetrics(ClipScore):
    """As torchmetrics: OpenAI's ViT-L/14, 100 * cos per picture (it clamps the mean only).

    A prompt that is too long keeps its end token, which torchmetrics cuts off.
    """

    name = "clipscore-torchmetrics"
    architecture = "ViT-L-14-quickgelu"
    licence = "Apache-2.0"
    weights = "OpenAI's ViT-L/14 in open_clip's layout, e.g. timm/vit_large_patch14_clip_224.openai"
    hub = _open_clip_files("timm/vit_large_patch14_clip_224.openai")
    size = "428 M"
    weight = 100.0

    @classmethod
    def transform(cls, side: int) -> Transform:
        """See OpenClipScorer; transformers' crop."""
        return Preprocess(size=side)
