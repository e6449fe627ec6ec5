"""What every scorer of the form f(cos(picture, prompt)) shares: features, memory of texts, cross products."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from scorers.base import ScorerBase, check_batch
from scorers.preprocess import Transform
from scorers.protocol import Details
from scorers.texts import TextCache


class TwoTower(ScorerBase):
    """Scorer with a tower for pictures and one for prompts. Features are compared in float32.

    Subclasses make unit features and say with ``scaled`` what becomes of the cosine.
    """

    preprocess: Transform
    prefix: str = ""
    """Put before every prompt."""

    def __init__(self) -> None:
        """Begin with an empty memory of texts."""
        super().__init__()
        self.texts = TextCache()

    @abstractmethod
    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit features (B, D) float32 of preprocessed pictures (B, 3, size, size)."""

    @abstractmethod
    def token_features(self, ids: Tensor) -> Tensor:
        """Unit features (B, D) float32 of token ids (B, L); padding behind the end token has no influence."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) token ids, cut at the model's limit with the end token kept."""

    @abstractmethod
    def text_weights(self) -> Sequence[Tensor]:
        """Weights that the features of prompts depend on."""

    @abstractmethod
    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, about 100 for trained models."""

    def scaled(self, cosines: Tensor) -> Tensor:
        """Score of cosines."""
        return cosines

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable in the pictures.

        Raises:
            ValueError: wrong shapes, not one prompt per picture, or a special token in a prompt.
        """
        return self.scaled(self.cosines(x01, prompts))

    def cosines(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 cosine of pictures and prompts; see ``score_tensor``."""
        check_batch(x01, prompts)
        return (self.encode_images(x01) * self.encode_prompts(prompts)).sum(1)

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """Score, with the cosine beside it."""
        cos = self.cosines(x01, prompts)
        return Details(score=self.scaled(cos), raw=cos)

    def cross_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score M pictures with each of N prompts: (M, N) float32; each is encoded once."""
        image, text = self.encode_images(x01), self.encode_prompts(prompts)
        with torch.autocast(image.device.type, enabled=False):
            return self.scaled(image @ text.T)

    def encode_images(self, x01: Tensor) -> Tensor:
        """Unit features (B, D) float32 of pictures (B, 3, H, W) in [0, 1]."""
        return self.image_features(self.preprocess(x01))

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit features (B, D) float32 of B prompts; remembered while the text tower is frozen."""
        texts = [self.prefix + prompt for prompt in prompts]
        return self.texts.features(
            texts, lambda t: self.token_features(self.tokenize(t)), self.text_weights()
        )
