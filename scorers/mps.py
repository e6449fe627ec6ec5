"""MPS: preference under a condition, by tokens of pictures that look at fitting words of prompts."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.clip_hf import (
    OLD_KEYS,
    cast_towers,
    clip_config,
    find_clip,
    limits,
    load_tokenizer,
    restore_positions,
    tokenize,
)
from scorers.load_options import LoadOptions, PictureOptions
from scorers.loading import build, read_state
from scorers.mps_cross import CrossModel
from scorers.preprocess import Preprocess
from scorers.texts import TextCache

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

OVERALL = (
    "light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, "
    "instance, texture, quantity, attributes, position, number, location, word, things."
)
"""The only condition whose weights are public: overall preference."""
CACHED_TEXTS = 512
"""A remembered text is 78 vectors, 320 KB at the published width."""


@dataclass(frozen=True, kw_only=True)
class MpsOptions:
    """What makes an MPS besides its weights; ``mps.json`` in a saved folder."""

    conditions: Mapping[str, str] = field(default_factory=lambda: {"overall": OVERALL})
    """Words of each dimension, the main one first."""
    threshold: float = 0.3
    """Words of the prompt count whose likeness to the condition is above this share of the likest word's;
    0.3 in the published evaluation, 0.01 in the published training."""
    read_condition: bool = False
    """Let the picture look at the words of the condition too, and compare it with prompt and condition
    together, the sum of their features. In the published model a condition acts only by the words that it
    hides, which has no gradient; models of one's own tastes learn far better so."""
    layers: int = 4
    heads: int = 16
    dim_head: int = 64
    mult: int = 4

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: no condition, an empty one, or a threshold outside [0, 1).
        """
        if not self.conditions or not all(words.strip() for words in self.conditions.values()):
            raise ValueError(
                f"MPS needs one condition or more, each of some words; got {dict(self.conditions)}"
            )
        if not 0 <= self.threshold < 1:
            raise ValueError(f"the threshold of words must lie in [0, 1), got {self.threshold}")


class MpsModel(nn.Module):
    """A CLIPModel and the cross model, under the key names of the published checkpoint."""

    def __init__(self, clip: CLIPModel, options: MpsOptions) -> None:
        """``clip`` gives the width of the cross model."""
        super().__init__()
        self.model = clip
        self.cross_model = CrossModel(
            dim=clip.config.projection_dim,
            layers=options.layers,
            heads=options.heads,
            dim_head=options.dim_head,
            mult=options.mult,
        )


@catalogue.register("mps")
class Mps(ScorerBase):
    """exp(logit_scale) * cos(prompt, picture as the prompt sees it), for each condition.

    The published training code measures words by the likest word of the whole batch; here every prompt is
    measured by its own, as in the published evaluation, so that scores do not depend on the batch.

    Args:
        towers: the model; it is put into evaluation mode and frozen.
        tokenizer: its tokenizer. All places of the text are looked at, so its padding matters.
        options: conditions and threshold.
    """

    name = "mps"
    range = (-100.0, 100.0)
    licence = "MIT"
    citation = "Zhang et al., Learning Multi-dimensional Human Preference, CVPR 2024, arXiv:2405.14705"
    weights = "MPS_overall_checkpoint.pth as safetensors (Kwai-Kolors/MPS; scorers.pickled converts it)"
    size = "1.1 B"
    option_type: ClassVar[type[LoadOptions]] = PictureOptions
    preprocess: Preprocess

    def __init__(
        self, towers: MpsModel, tokenizer: PreTrainedTokenizerBase, options: MpsOptions | None = None
    ) -> None:
        """See the class."""
        super().__init__()
        self.towers, self.tokenizer = towers, tokenizer
        self.options = options or MpsOptions()
        self.dims = tuple(self.options.conditions)
        self.preprocess = Preprocess(size=limits(towers.model).side)
        self.texts = TextCache(CACHED_TEXTS)
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Mps:
        """Load a file of the published sizes, or a folder with a CLIP's configuration and tokenizer.

        ``mps.json`` in the folder holds the options.

        Raises:
            FileNotFoundError: nothing given or found, or a file is missing in the folder.
            ValueError: the weights do not fit key by key, or the options are wrong.
        """
        from transformers import CLIPModel

        path = find_clip(cls.name, weights, cls.weights)
        config, options = clip_config(path), _options(path)
        towers = build(
            lambda: MpsModel(CLIPModel(config), options),
            read_state(path),
            where=path,
            ignore=OLD_KEYS,
        )
        restore_positions(towers.model)
        _cast(towers, dtype)
        return cls(towers, load_tokenizer(path, towers.model), options).to(device)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts under the main condition: (B,) float32.

        Raises:
            ValueError: wrong shapes, not one prompt per picture, or a special token in a prompt.
        """
        return self.score_conditions(x01, prompts, [self.dims[0]] * len(x01))

    def score_dims(self, x01: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Scores under every condition; towers run once. See ``score_tensor``."""
        check_batch(x01, prompts)
        image, text = self.encode_images(x01), self.encode_texts(prompts)
        return {dim: self.compare_tokens(image, text, self._condition([dim] * len(x01))) for dim in self.dims}

    def score_conditions(self, x01: Tensor, prompts: Sequence[str], dims: Sequence[str]) -> Tensor:
        """Score each picture under a condition of its own: (B,) float32, differentiable in all weights.

        Raises:
            ValueError: unknown dimension, or see ``score_tensor``.
        """
        check_batch(x01, prompts)
        return self.compare_tokens(self.encode_images(x01), self.encode_texts(prompts), self._condition(dims))

    def cross_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See ScorerBase; each picture and prompt is encoded once."""
        image, text = self.encode_images(x01), self.encode_texts(prompts)
        words = self._condition([self.dims[0]] * len(x01))
        columns = (self.compare_tokens(image, t.expand(len(x01), -1, -1), words) for t in text)
        return torch.stack(list(columns), 1)

    def encode_images(self, x01: Tensor) -> Tensor:
        """Tokens (B, Q, D) of pictures (B, 3, H, W) in [0, 1], the first that of the whole picture."""
        return self.image_tokens(self.preprocess(x01))

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Tokens (B, Q, D) of preprocessed pictures: projected without the last norm, as published."""
        clip = self.towers.model
        pixels = pixels.to(clip.visual_projection.weight.dtype)
        out: Tensor = clip.visual_projection(clip.vision_model(pixel_values=pixels).last_hidden_state)
        return out

    def text_tokens(self, ids: Tensor) -> Tensor:
        """(B, L + 1, D): projected tokens of ids (B, L), then the pooled feature of the whole text."""
        clip = self.towers.model
        out = clip.text_model(input_ids=ids)
        both = torch.cat([out.last_hidden_state, out.pooler_output[:, None]], 1)
        projected: Tensor = clip.text_projection(both)
        return projected

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) ids, always padded to the limit."""
        limit = limits(self.towers.model).tokens
        return tokenize(self.tokenizer, prompts, limit, pad_to_limit=True).to(self.device)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """(B, L + 1, D), see ``text_tokens``; remembered while the text tower is frozen."""
        clip = self.towers.model
        weights = [*clip.text_model.parameters(), clip.text_projection.weight]
        return self.texts.features(texts, lambda t: self.text_tokens(self.tokenize(t)), weights)

    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, about 100 for trained models."""
        out: Tensor = self.towers.model.logit_scale.float().exp()
        return out

    def compare_tokens(self, image: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        """(B,) float32 scores of tokens (B, Q, D), (B, L + 1, D) and of the condition (B, L + 1, D)."""
        context, aim, words = text[:, :-1], text[:, -1], condition[:, :-1]
        mask = word_mask(context, words, self.options.threshold)
        if self.options.read_condition:
            context, aim = torch.cat([context, words], 1), aim + condition[:, -1]
            mask = F.pad(mask, (0, words.shape[1]))
        found = self.towers.cross_model(image, context, mask)[:, 0]
        cos = F.cosine_similarity(found.float(), aim.float(), dim=-1)
        return self.scale() * cos

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save weights, tokenizer and options for ``scorers.load("mps", weights=folder)``.

        ``dtype`` is that of the file only. Every file is written beside and moved into place, weights last.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            self.towers.model.config.save_pretrained(name)
            state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in self.towers.state_dict().items()}
            save_file(state, Path(name) / "model.safetensors", metadata={"format": "pt"})
            self.tokenizer.save_pretrained(name)
            (Path(name) / "mps.json").write_text(json.dumps(asdict(self.options), indent=2) + "\n")
            for file in sorted(Path(name).iterdir(), key=lambda f: f.suffix == ".safetensors"):
                os.replace(file, folder / file.name)

    def _condition(self, dims: Iterable[str]) -> Tensor:
        """(B, L + 1, D) tokens of the words of each dimension, see ``text_tokens``."""
        names = list(dims)
        unknown = sorted(set(names) - set(self.dims))
        if unknown:
            raise ValueError(f"this MPS has no condition {unknown[0]!r}; it has {', '.join(self.dims)}")
        return self.encode_texts([self.options.conditions[name] for name in names])


def word_mask(text: Tensor, condition: Tensor, threshold: float) -> Tensor:
    """(B, L) float32: 0 for words of prompts that fit the condition, -inf for the others.

    A word's likeness is its largest dot product with a word of the condition; it fits if that is above
    ``threshold`` times the likest word's.

    Args:
        text: (B, L, D) tokens of prompts.
        condition: (B, L', D) tokens of conditions.
        threshold: in [0, 1).
    """
    with torch.autocast(text.device.type, enabled=False):
        like = (text.float() @ condition.float().transpose(1, 2)).amax(2)  # (B, L)
    keep = like / like.amax(1, keepdim=True) > threshold
    return torch.zeros_like(like).masked_fill(~keep, -torch.inf)


def _options(path: Path) -> MpsOptions:
    file = path / "mps.json"
    if not (path.is_dir() and file.is_file()):
        return MpsOptions()
    try:
        found: dict[str, Any] = json.loads(file.read_text())
        return MpsOptions(**found)
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file} holds no options of MPS ({error})") from error


def _cast(towers: MpsModel, dtype: torch.dtype) -> None:
    """Cast all but logit_scale and the rotary frequencies, whose rounding would turn far places wrongly."""
    towers.float()
    cast_towers(towers.model, dtype)
    for name, module in towers.cross_model.named_modules():
        if not name.endswith("rotary_emb"):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                tensor.data = tensor.data.to(dtype)
