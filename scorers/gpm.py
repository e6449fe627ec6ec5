"""General preference model: pictures as points on circles, so that preferences may run in circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, broadcast, check_batch
from scorers.featured import (
    WHAT,
    image_inputs,
    joint_inputs,
    load_encoder,
    read_head,
    read_options,
    save_featured,
)
from scorers.groups import mean_win, von_neumann_winner
from scorers.images import ImageLike, to_tensors
from scorers.loading import build
from scorers.losses_structure import gpm_score
from scorers.pickscore import PickScore
from scorers.protocol import PairOutput


@dataclass(frozen=True, kw_only=True)
class GPMOptions:
    """Shape of a general preference model's head."""

    planes: int = 4
    """Half the embedding's size; 1 is a circle, as in the paper's smallest model."""
    hidden: int = 0
    """Width of a hidden layer (with ReLU) before the embedding; 0 is the published linear head."""
    normalise: bool = False
    """Put embeddings on the unit sphere. The published example does, the published trainer does not."""
    gated: bool = False
    """Weigh the planes by a softmax over the prompt's features."""
    tau: float = 0.1
    """P(a over b) = sigmoid(score / tau)."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: no plane, a negative width, or a temperature that is not positive.
        """
        if self.planes < 1 or self.hidden < 0 or self.tau <= 0:
            raise ValueError(f"planes >= 1, hidden >= 0 and tau > 0 are needed, got {self}")


class GPMHead(nn.Module):
    """Embeddings (B, 2k) from inputs (B, width), weights (B, k) of planes from prompts (B, text_width)."""

    def __init__(self, width: int, text_width: int, options: GPMOptions) -> None:
        """Start at N(0, 1 / (inputs + 1)^2), as published."""
        super().__init__()
        self.options = options
        inner = options.hidden or width
        self.hidden = nn.Linear(width, inner) if options.hidden else nn.Identity()
        self.value = nn.Linear(inner, 2 * options.planes, bias=False)
        self.prompt = nn.Linear(text_width, options.planes, bias=False) if options.gated else None
        nn.init.normal_(self.value.weight, std=1 / (inner + 1))

    def embed(self, inputs: Tensor) -> Tensor:
        """(B, 2k) embeddings; see ``featured.joint_inputs`` for the inputs."""
        with torch.autocast(inputs.device.type, enabled=False):
            h = self.hidden(inputs.float())
            out: Tensor = self.value(h.relu() if self.options.hidden else h)
        return F.normalize(out, dim=-1) if self.options.normalise else out

    def gate(self, text: Tensor) -> Tensor | None:
        """(B, k) weights of the planes, or None where they all count 1; ``text`` (B, text_width)."""
        if self.prompt is None:
            return None
        with torch.autocast(text.device.type, enabled=False):
            out: Tensor = self.prompt(text.float())
        return out.softmax(-1)


@catalogue.register("gpm")
class GPM(ScorerBase):
    """Compares pictures; has no scalar score, since preferences may be intransitive.

    ``compare`` compares pairs, ``group`` scores the pictures of a prompt among each other.

    Args:
        encoder: gives the features; frozen.
        head: on joint features of picture and prompt.
    """

    name = "gpm"
    kind = "pairwise"
    licence = "Apache-2.0"
    citation = "Zhang et al., Beyond Bradley-Terry Models: A General Preference Model, 2024, arXiv:2410.02197"
    weights = WHAT
    size = "of the encoder"

    def __init__(self, encoder: PickScore, head: GPMHead) -> None:
        """See the class."""
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.temperature = head.options.tau
        self.eval().requires_grad_(False)

    @classmethod
    def create(cls, encoder: PickScore, options: GPMOptions | None = None) -> Self:
        """A new head with random weights on an encoder, to be trained with ``pair_cross_entropy``."""
        width = encoder.clip.config.projection_dim
        return cls(encoder, GPMHead(2 * width, width, options or GPMOptions()).to(encoder.device))

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load what ``save`` wrote.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: weights that do not fit, or the head of another scorer.
        """
        encoder, folder = load_encoder(cls.name, weights, device=device, dtype=dtype)
        options, width = read_options(GPMOptions, folder, cls.name), encoder.clip.config.projection_dim
        head = build(lambda: GPMHead(2 * width, width, options), read_head(folder), where=folder)
        return cls(encoder, head).to(device)

    def save(self, folder: str | Path) -> None:
        """Save encoder and head for ``load``."""
        save_featured(folder, self.name, self.encoder, self.head, asdict(self.head.options))

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Refuse: there is no number per picture.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "gpm has no score of a single picture; use compare(a, b, prompts) or group(images, prompt)"
        )

    def embed(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 2k) float32 embeddings of pictures (B, 3, H, W) in [0, 1] for B prompts; differentiable."""
        check_batch(x01, prompts)
        image, text = self.encoder.encode_images(x01), self.encoder.encode_prompts(prompts)
        return self.head.embed(joint_inputs(image, text))

    def gate(self, prompts: Sequence[str]) -> Tensor | None:
        """(B, k) weights of the planes for B prompts, or None."""
        return self.head.gate(image_inputs(self.encoder.encode_prompts(prompts)))

    def compare_tensor(self, a01: Tensor, b01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 logits that pictures a beat pictures b, each (B, 3, H, W); differentiable in both."""
        score = gpm_score(self.embed(a01, prompts), self.embed(b01, prompts), self.gate(prompts))
        return score / self.temperature

    def compare(
        self,
        a: ImageLike | Sequence[ImageLike],
        b: ImageLike | Sequence[ImageLike],
        prompts: str | Sequence[str] | None = None,
        *,
        chunk: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> PairOutput:
        """Compare n pictures with n others; see ScorerBase."""
        first, second, texts = self.paired(a, b, prompts, value_range)
        with torch.no_grad():
            v, w = (self._embed_all(side, texts, chunk) for side in (first, second))
            logit = (gpm_score(v, w, self.gate(texts)) / self.temperature).cpu()
        prob, threshold = logit.sigmoid(), self.tie_threshold
        tie = None if threshold is None else ((2 * prob - 1).abs() <= threshold).float()
        return PairOutput(logit=logit, prob=prob, tie_prob=tie, meta=self.describe())

    def matrix(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str,
        *,
        chunk: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> Tensor:
        """(n, n) logits that picture i beats picture j for the prompt; antisymmetric."""
        pictures = to_tensors(images, value_range)
        with torch.no_grad():
            v = self._embed_all(pictures, broadcast(prompt, len(pictures)), chunk)  # (n, 2k)
            gate = self.gate([prompt])
            return (gpm_score(v[:, None], v[None, :], gate) / self.temperature).cpu()

    def group(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str,
        *,
        how: Literal["mean", "von-neumann"] = "mean",
        chunk: int = 32,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> Tensor:
        """(n,) scores of a prompt's pictures among each other.

        Args:
            images: n pictures, at least two.
            prompt: what they were made for.
            how: ``"mean"``: mean logit against the others; ``"von-neumann"``: shares of the lottery that no
                picture beats, which sum to 1.
            chunk: how many pictures go through the encoder at once.
            value_range: meaning of float pictures.

        Raises:
            ValueError: fewer than two pictures, or unknown ``how``.
        """
        if how not in ("mean", "von-neumann"):
            raise ValueError(f"how must be 'mean' or 'von-neumann', not {how!r}")
        logits = self.matrix(images, prompt, chunk=chunk, value_range=value_range)
        return mean_win(logits) if how == "mean" else von_neumann_winner(logits.sigmoid())

    def _embed_all(self, pictures: Sequence[Tensor], texts: Sequence[str], chunk: int) -> Tensor:
        out = torch.empty(len(pictures), 2 * self.head.options.planes, device=self.device)
        for rows, x01 in self._stacks(pictures, chunk):
            out[rows] = self.embed(x01, [texts[i] for i in rows])
        return out
