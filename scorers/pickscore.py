"""PickScore, and every CLIP-type scorer of its form: exp(logit_scale) * cos(picture, prompt)."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.clip_hf import cast_towers, clip_folder, limits, load_clip, load_tokenizer, tokenize, unit
from scorers.preprocess import Preprocess
from scorers.protocol import Details
from scorers.texts import TextCache

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

Normalise = Literal["none", "cos", "div26"]


@catalogue.register("pickscore")
class PickScore(ScorerBase):
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
    size = "986 M"
    preprocess: Preprocess

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
        super().__init__()
        if normalise not in ("none", "cos", "div26"):
            raise ValueError(f"normalise must be 'none', 'cos' or 'div26', not {normalise!r}")
        self.clip = clip
        self.tokenizer = tokenizer
        self.preprocess = preprocess or Preprocess(size=limits(clip).side)
        self.normalise = normalise
        self.texts = TextCache()
        units = {"none": 1.0, "div26": 26.0, "cos": float(self.scale().detach())}[normalise]  # of the score
        self.temperature = 1 / units
        self.range = (-1.0, 1.0) if normalise == "cos" else (-100 / units, 100 / units)
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        weights: Path | None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        normalise: Normalise = "none",
    ) -> PickScore:
        """Load a folder that holds a saved CLIPModel and its tokenizer.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: the weights do not fit the configuration key by key.
        """
        folder = clip_folder(cls.name, weights)
        clip = load_clip(folder)
        cast_towers(clip, dtype)
        preprocess = Preprocess.load(folder, limits(clip).side)
        return cls(clip, load_tokenizer(folder, clip), preprocess, normalise).to(device)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable in the pictures.

        Raises:
            ValueError: wrong shapes, not one prompt per picture, or a special token in a prompt.
        """
        return self._scaled(self.cosines(x01, prompts))

    def cosines(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 cosine of pictures and prompts; see ``score_tensor``."""
        check_batch(x01, prompts)
        return (self.encode_images(x01) * self.encode_prompts(prompts)).sum(1)

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """Score, with the cosine beside it."""
        cos = self.cosines(x01, prompts)
        return Details(score=self._scaled(cos), raw=cos)

    def cross_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score M pictures with each of N prompts: (M, N) float32; each is encoded once."""
        image, text = self.encode_images(x01), self.encode_prompts(prompts)
        with torch.autocast(image.device.type, enabled=False):
            return self._scaled(image @ text.T)

    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, about 100 for trained models."""
        out: Tensor = self.clip.logit_scale.float().exp()
        return out

    def encode_images(self, x01: Tensor) -> Tensor:
        """Unit features (B, D) float32 of pictures (B, 3, H, W) in [0, 1]."""
        return self.image_features(self.preprocess(x01))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit features (B, D) float32 of preprocessed pictures (B, 3, size, size)."""
        pixels = pixels.to(self.clip.visual_projection.weight.dtype)
        return unit(self.clip.get_image_features(pixel_values=pixels))

    def token_features(self, ids: Tensor) -> Tensor:
        """Unit features (B, D) float32 of token ids (B, L); padding behind the end token has no influence."""
        return unit(self.clip.get_text_features(input_ids=ids))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) token ids, padded to the longest, cut at the model's limit with the end token kept."""
        return tokenize(self.tokenizer, prompts, limits(self.clip).tokens).to(self.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit features (B, D) float32 of B prompts; remembered while the text tower is frozen."""
        weights = [*self.clip.text_model.parameters(), self.clip.text_projection.weight]
        return self.texts.features(prompts, lambda texts: self.token_features(self.tokenize(texts)), weights)

    def _scaled(self, cosines: Tensor) -> Tensor:
        if self.normalise == "cos":
            return cosines
        return cosines * self.scale() / (26 if self.normalise == "div26" else 1)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save model, tokenizer and transform for ``scorers.load("pickscore", weights=folder)``.

        ``dtype`` is that of the file only: half precision halves it and moves scores by about 1e-3.
        Every file is written beside and then moved into place, the weights last.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            self.clip.config.save_pretrained(name)
            weights = self.clip.state_dict().items()
            state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in weights}
            save_file(state, Path(name) / "model.safetensors", metadata={"format": "pt"})
            self.tokenizer.save_pretrained(name)
            (Path(name) / "preprocessor_config.json").write_text(
                json.dumps(self.preprocess.to_dict(), indent=2) + "\n"
            )
            for file in sorted(Path(name).iterdir(), key=lambda f: f.suffix == ".safetensors"):
                os.replace(file, folder / file.name)
