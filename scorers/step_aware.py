"""SPO's judge: a PickScore-type scorer that knows from which denoising step a picture was predicted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import check_batch
from scorers.clip_hf import cast_towers, find_clip, load_clip, load_tokenizer, unit
from scorers.loading import build, read_state
from scorers.lrm_noise import time_features
from scorers.pickscore import Normalise, PickScore
from scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

STEPS = "steps.safetensors"
TIME_WIDTH = 256


class StepNorms(nn.Module):
    """Scale and shift of both norms of every layer of the vision tower, from the timestep (AdaLN).

    They start at scale 1 and shift 0, so that a new judge is the scorer that it is put on.

    Args:
        layers: of the tower.
        width: of the tower.
    """

    def __init__(self, layers: int, width: int) -> None:
        """See the class."""
        super().__init__()
        self.layers = layers
        self.time = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU())
        self.out = nn.Linear(width, 4 * layers * width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, times: Tensor) -> Tensor:
        """(layers, 4, B, 1, width) of (B,) times: scale less 1 and shift of the one norm, then the other."""
        found: Tensor = self.out(self.time(time_features(times, TIME_WIDTH).to(self.out.weight.dtype)))
        parts: Tensor = found.unflatten(1, (self.layers, 4, 1, -1))
        return parts.permute(1, 2, 0, 3, 4)


@catalogue.register("step-aware")
class StepAware(PickScore):
    """PickScore whose vision tower knows the timestep; ``score_tensor`` is for clean pictures, at timestep 0.

    For the candidates of one denoising step: predict x0 of each at the step's time, decode, and call
    ``score_steps`` (SPO, arXiv:2406.04314, section 4.1).

    Args:
        clip: the model; it is put into evaluation mode and frozen.
        tokenizer: its tokenizer.
        preprocess: transform of the pictures.
        normalise: unit of the score, see PickScore.
        steps: what the timestep does; None starts anew.
    """

    name = "step-aware"
    licence = "Apache-2.0 (own code); that of the CLIP it was made from"
    citation = (
        "Liang et al., Step-aware Preference Optimization: Aligning Preference with Denoising Performance at "
        "Each Step, 2024, arXiv:2406.04314"
    )
    weights = f"folder of your own training: a CLIPModel with its tokenizer, and {STEPS}"
    size = "of the CLIP"
    hub = ()  # type: ignore[assignment]  # PickScore has two places, this one none

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        preprocess: Preprocess | None = None,
        normalise: Normalise = "none",
        steps: StepNorms | None = None,
    ) -> None:
        """See the class."""
        super().__init__(clip, tokenizer, preprocess, normalise)
        self.steps = new_steps(clip).to(self.device) if steps is None else steps
        self.eval().requires_grad_(False)

    @classmethod
    def create(cls, scorer: PickScore) -> Self:
        """A new judge on a scorer of clean pictures; it takes over the scorer's towers, and scores alike."""
        return cls(scorer.clip, scorer.tokenizer, scorer.preprocess)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load what ``save`` wrote.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: the weights do not fit key by key.
        """
        path = find_clip(cls.name, weights, cls.weights)
        file = path / STEPS
        if not file.is_file():
            raise FileNotFoundError(
                f"scorer {cls.name!r}: there is no {file}; a PickScore becomes a step-aware judge by "
                "training (StepAware.create)"
            )
        clip = load_clip(path)
        state = {key: value.float() for key, value in read_state(file).items()}
        steps = build(lambda: new_steps(clip), state, where=file)
        tokenizer, preprocess = load_tokenizer(path, clip), Preprocess.load(path, clip_side(clip))
        cast_towers(clip, dtype)  # what the timestep does stays in float32
        return cls(clip, tokenizer, preprocess, steps=steps).to(device)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save as PickScore does; what the timestep does is in a file of its own, which is written first."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{STEPS}.tmp"
        state = {k: v.detach().cpu().float().contiguous() for k, v in self.steps.state_dict().items()}
        save_file(state, temporary)
        os.replace(temporary, folder / STEPS)
        super().save(folder, dtype)

    def score_steps(self, x01: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures that were predicted from noisy latents: (B,) float32, differentiable in them.

        Args:
            x01: (B, 3, H, W) in [0, 1].
            timesteps: (B,) times as the denoiser takes them, in [0, 1000].
            prompts: B prompts.

        Raises:
            ValueError: wrong shapes, not one timestep or prompt per picture, or a special token in a prompt.
        """
        check_batch(x01, prompts)
        if timesteps.shape != x01.shape[:1]:
            raise ValueError(f"{len(x01)} pictures need as many timesteps, got {tuple(timesteps.shape)}")
        image = self.step_features(self.preprocess(x01), timesteps)
        return self.scaled((image * self.encode_prompts(prompts)).sum(1))

    def image_features(self, pixels: Tensor) -> Tensor:
        """See TwoTower; of clean pictures."""
        return self.step_features(pixels, pixels.new_zeros(len(pixels)))

    def step_features(self, pixels: Tensor, times: Tensor) -> Tensor:
        """Unit features (B, D) float32 of preprocessed pictures (B, 3, size, size) at (B,) times."""
        tower: Any = self.clip.vision_model
        x = tower.embeddings(pixels.to(self.clip.visual_projection.weight.dtype))
        x = tower.pre_layrnorm(x)  # (B, N, W)
        changes = self.steps(times).to(x.dtype)
        for layer, (scale_1, shift_1, scale_2, shift_2) in zip(tower.encoder.layers, changes, strict=True):
            h = layer.layer_norm1(x) * (1 + scale_1) + shift_1
            x = x + layer.self_attn(h, attention_mask=None)[0]
            x = x + layer.mlp(layer.layer_norm2(x) * (1 + scale_2) + shift_2)
        return unit(self.clip.visual_projection(tower.post_layernorm(x[:, 0])))


def new_steps(clip: CLIPModel) -> StepNorms:
    """Untrained StepNorms for the vision tower of a CLIP."""
    vision: Any = clip.config.vision_config
    return StepNorms(vision.num_hidden_layers, vision.hidden_size)


def clip_side(clip: CLIPModel) -> int:
    """Side of the pictures of a CLIP."""
    vision: Any = clip.config.vision_config
    return int(vision.image_size)
