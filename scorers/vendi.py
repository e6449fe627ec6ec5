"""Vendi score of the pictures of a prompt, and mean cosine distance: diversity by an image tower."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from scorers import catalogue
from scorers.diversity import mean_cosine_distance, vendi
from scorers.embed import Embedder
from scorers.hub import HubFiles
from scorers.loading import need_weights
from scorers.sets import SetScorer

WEIGHTS = "folder of a saved DINOv2 (facebook/dinov2-base) or CLIP model"


class EmbeddedSet(SetScorer):
    """Diversity of a set by the features of an image tower.

    Args:
        embedder: gives the features.
    """

    licence = "Apache-2.0 (own code); the image tower has its own"
    weights = WEIGHTS
    hub = (
        HubFiles("facebook/dinov2-base", ("config.json", "model.safetensors", "preprocessor_config.json")),
    )
    size = "86M (DINOv2 base)"

    def __init__(self, embedder: Embedder) -> None:
        """See the class."""
        super().__init__()
        self.embedder = embedder
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> EmbeddedSet:
        """Load the image tower from a folder.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: not a model that is known here, or weights that do not fit it.
        """
        folder = need_weights(cls.name, weights, WEIGHTS)
        return cls(Embedder.load(folder, dtype)).to(device)

    def features(self, x01: Tensor) -> Tensor:
        """See SetScorer; differentiable."""
        found: Tensor = self.embedder(x01)
        return found

    def describe(self) -> dict[str, str]:
        """Which model, and how pictures are resized: numbers of different ones do not compare."""
        return {**super().describe(), "model": self.embedder.about, "resize": str(self.embedder.transform)}


@catalogue.register("vendi")
class Vendi(EmbeddedSet):
    """Effective number of different pictures among those of a prompt (Vendi score of order 1)."""

    name = "vendi"
    range = (1.0, float("inf"))
    citation = "Friedman and Dieng, The Vendi Score, 2023, arXiv:2210.02410"

    def of_set(self, features: Tensor) -> Tensor:
        """See SetScorer."""
        return vendi(features)


@catalogue.register("dino-diversity")
class DinoDiversity(EmbeddedSet):
    """1 - mean cosine between the features of different pictures of a prompt."""

    name = "dino-diversity"
    range = (0.0, 2.0)
    citation = "Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, arXiv:2304.07193"

    def of_set(self, features: Tensor) -> Tensor:
        """See SetScorer."""
        return mean_cosine_distance(features)
