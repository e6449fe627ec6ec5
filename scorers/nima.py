"""NIMA's head: a distribution over marks of 1 to 10, of which the mean is the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.featured import WHAT, image_inputs, load_encoder, read_head, read_options, save_featured
from scorers.loading import build
from scorers.pickscore import PickScore
from scorers.protocol import Details


@dataclass(frozen=True, kw_only=True)
class NIMAOptions:
    """Shape of a distribution head."""

    bins: int = 10
    """Marks 1, 2, ..., bins."""
    dropout: float = 0.75
    """In training, as published."""


class DistributionHead(nn.Module):
    """Probabilities (B, bins) of marks from features (B, width); train it with ``emd``."""

    def __init__(self, width: int, options: NIMAOptions) -> None:
        """Start with random weights."""
        super().__init__()
        self.options = options
        self.dropout = nn.Dropout(options.dropout)
        self.out = nn.Linear(width, options.bins)

    def forward(self, x: Tensor) -> Tensor:
        """Probabilities (B, bins) float32."""
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.out(self.dropout(x.float()))
        return logits.softmax(-1)


def moments(dist: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) mean and (B,) standard deviation of distributions (B, bins) over the marks 1, 2, ..., bins."""
    marks = torch.arange(1, dist.shape[-1] + 1, device=dist.device, dtype=dist.dtype)
    mean = (dist * marks).sum(-1)
    return mean, ((dist * (marks - mean[..., None]).square()).sum(-1)).clamp(min=0).sqrt()


@catalogue.register("nima")
class NIMA(ScorerBase):
    """Mean mark of a picture by a distribution head on an image encoder; the prompt is ignored.

    The paper fine-tunes an ImageNet network; here the features come from a frozen CLIP-type encoder, on which
    only the head is trained. ``std`` is the spread of the marks.

    Args:
        encoder: gives the features; frozen.
        head: on the features of the picture.
    """

    name = "nima"
    dims = ("quality",)
    range = (1.0, 10.0)
    needs = frozenset()
    licence = "Apache-2.0"
    citation = "Talebi and Milanfar, NIMA: Neural Image Assessment, 2017, arXiv:1709.05424"
    weights = WHAT
    size = "of the encoder"

    def __init__(self, encoder: PickScore, head: DistributionHead) -> None:
        """See the class."""
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.range = (1.0, float(head.options.bins))
        self.eval().requires_grad_(False)

    @classmethod
    def create(cls, encoder: PickScore, options: NIMAOptions | None = None) -> Self:
        """A new head with random weights on an encoder, to be trained with ``emd``."""
        width = encoder.clip.config.projection_dim
        return cls(encoder, DistributionHead(width, options or NIMAOptions()).to(encoder.device))

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load what ``save`` wrote; see ``GPM.load`` for what is raised."""
        encoder, folder = load_encoder(cls.name, weights, device=device, dtype=dtype)
        options, width = read_options(NIMAOptions, folder, cls.name), encoder.clip.config.projection_dim
        head = build(lambda: DistributionHead(width, options), read_head(folder), where=folder)
        return cls(encoder, head).to(device)

    def save(self, folder: str | Path) -> None:
        """Save encoder and head for ``load``."""
        save_featured(folder, self.name, self.encoder, self.head, asdict(self.head.options))

    def distribution(self, x01: Tensor) -> Tensor:
        """Probabilities (B, bins) float32 of the marks of pictures (B, 3, H, W) in [0, 1]; differentiable."""
        out: Tensor = self.head(image_inputs(self.encoder.encode_images(x01)))
        return out

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Mean marks (B,) float32 of pictures (B, 3, H, W) in [0, 1], differentiable; prompts are ignored."""
        return self.details(x01, prompts).score

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """Mean mark, and its spread as ``std``."""
        check_batch(x01, prompts)
        mean, std = moments(self.distribution(x01))
        return Details(score=mean, std=std)
