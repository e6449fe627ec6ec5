"""Decomposed reward models: directions of preference differences as heads, weighed by a user's few votes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.featured import WHAT, joint_inputs, load_encoder, read_head, read_options, save_featured
from scorers.loading import build
from scorers.pickscore import PickScore


@dataclass(frozen=True, kw_only=True)
class DRMOptions:
    """Shape of decomposed heads."""

    components: int = 5
    """How many principal components; each is a head in both directions."""


class DRMHeads(nn.Module):
    """Linear heads <w, e> on embeddings e (.., d): the mean difference, then +w_1 .. +w_k, then -w_1 .. -w_k.

    The components are those of the centred differences of preferred and other embeddings (arXiv:2502.13131);
    centring takes the direction that all voters share away, so it is kept as the first head.
    """

    components: Tensor
    mean: Tensor
    scale: Tensor
    variance: Tensor
    weights: Tensor

    def __init__(self, width: int, options: DRMOptions) -> None:
        """Make empty heads; ``fit`` fills them."""
        super().__init__()
        k = options.components
        self.options = options
        self.register_buffer("components", torch.zeros(k, width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(1 + 2 * k))
        self.register_buffer("variance", torch.zeros(k))
        self.register_buffer("weights", torch.eye(1 + 2 * k)[0])  # the shared direction alone

    @classmethod
    def fit(cls, chosen: Tensor, rejected: Tensor, components: int = 5) -> Self:
        """Principal components of chosen - rejected (N, d each), with a fixed sign: towards the mean.

        Raises:
            ValueError: unequal shapes, or fewer pairs or dimensions than components.
        """
        d = chosen - rejected  # (N, d)
        if chosen.shape != rejected.shape or chosen.ndim != 2 or components >= min(len(d), d.shape[1] + 1):
            shapes = f"{tuple(chosen.shape)} and {tuple(rejected.shape)}"
            raise ValueError(f"{components} components need more pairs and as many dimensions, got {shapes}")
        heads = cls(d.shape[1], DRMOptions(components=components)).to(d.device)
        mean = d.mean(0)
        _, s, v = torch.linalg.svd(d.double() - mean.double(), full_matrices=False)
        w = v[:components].to(d.dtype)
        heads.components = w * torch.where(w @ mean < 0, -1.0, 1.0).to(d.dtype)[:, None]
        heads.variance = s[:components].square().to(d.dtype) / (len(d) - 1)
        heads.mean = mean
        heads.scale = heads.scores(d).std(0).clamp(min=1e-12)
        return heads

    def directions(self) -> Tensor:
        """(1 + 2k, d) unit vectors of the heads."""
        shared = self.mean / self.mean.norm().clamp(min=1e-12)
        return torch.cat([shared[None], self.components, -self.components])

    def scores(self, e: Tensor) -> Tensor:
        """(.., 1 + 2k) scores of embeddings (.., d) by every head."""
        with torch.autocast(e.device.type, enabled=False):
            return e.to(self.mean.dtype) @ self.directions().T

    def weigh(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """(1 + 2k,) weights of the heads for a user, from the n pairs (n, d each) of a few votes; sum 1.

        Each head counts by the mean of its standardised margins on these pairs, those that disagree by 0.

        Raises:
            ValueError: no pairs, or pairs that no head tells apart.
        """
        if not len(chosen):
            raise ValueError("a user's weights need at least one pair; about 5 to 15 are usual")
        margin = (self.scores(chosen - rejected) / self.scale).mean(0).relu()
        if float(margin.sum()) == 0:
            raise ValueError("no head tells these pairs apart; are both sides the same?")
        return margin / margin.sum()

    def reward(self, e: Tensor, weights: Tensor | None = None) -> Tensor:
        """(..,) weighed sum of the standardised heads; None takes the weights that are set."""
        used = self.weights if weights is None else weights
        return (self.scores(e) / self.scale) @ used.to(self.scale)


@catalogue.register("drm")
class DRM(ScorerBase):
    """Reward of a user: heads on the encoder's joint features, weighed by ``adapt``.

    Until a user is set the shared direction alone counts. ``dims`` has every head.

    Args:
        encoder: gives the features; frozen.
        heads: fitted on ``embed`` of preferred and other pictures.
    """

    name = "drm"
    licence = "Apache-2.0"
    citation = "Luo et al., Rethinking Diverse Human Preference Learning through PCA, 2025, arXiv:2502.13131"
    weights = WHAT
    size = "of the encoder"

    def __init__(self, encoder: PickScore, heads: DRMHeads) -> None:
        """See the class."""
        super().__init__()
        self.encoder = encoder
        self.heads = heads
        numbers = [str(i + 1) for i in range(heads.options.components)]
        self.dims = ("preference", "shared", *(f"+{i}" for i in numbers), *(f"-{i}" for i in numbers))
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load what ``save`` wrote; see ``GPM.load`` for what is raised."""
        encoder, folder = load_encoder(cls.name, weights, device=device, dtype=dtype)
        options, width = read_options(DRMOptions, folder, cls.name), encoder.clip.config.projection_dim
        heads = build(lambda: DRMHeads(2 * width, options), read_head(folder), where=folder)
        return cls(encoder, heads).to(device)

    def save(self, folder: str | Path) -> None:
        """Save encoder and heads for ``load``, with the weights that are set."""
        save_featured(folder, self.name, self.encoder, self.heads, asdict(self.heads.options))

    def embed(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 2D) float32 embeddings of pictures (B, 3, H, W) in [0, 1] for B prompts; differentiable."""
        check_batch(x01, prompts)
        return joint_inputs(self.encoder.encode_images(x01), self.encoder.encode_prompts(prompts))

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable in the pictures."""
        return self.heads.reward(self.embed(x01, prompts))

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The reward, and every head's own standardised score."""
        e = self.embed(x01, prompts)
        each = (self.heads.scores(e) / self.heads.scale).unbind(-1)
        return dict(zip(self.dims, (self.heads.reward(e), *each), strict=True))

    def adapt(self, chosen: Tensor, rejected: Tensor, prompts: Sequence[str]) -> Self:
        """Weigh the heads for a user by n votes between pictures (n, 3, H, W) in [0, 1]; returns the scorer.

        Raises:
            ValueError: no votes, or see ``score_tensor``.
        """
        with torch.no_grad():
            self.heads.weights = self.heads.weigh(self.embed(chosen, prompts), self.embed(rejected, prompts))
        return self
