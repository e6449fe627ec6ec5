"""What the scorers on a transformers CLIPModel share: layouts, limits, precision, features, saving."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers.load_options import LoadOptions, PictureOptions
from scorers.loading import build, need_weights, read_state
from scorers.preprocess import Preprocess
from scorers.texts import refuse_special
from scorers.two_tower import TwoTower

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutputWithPooling

OLD_KEYS = ("*position_ids",)
"""Old checkpoints carry position ids, which are just 0, 1, 2, ... and no longer saved."""


class Limits(NamedTuple):
    """Side of the pictures, longest prompt in tokens, and size of the vocabulary."""

    side: int
    tokens: int
    words: int


def limits(clip: CLIPModel) -> Limits:
    """Limits that the configuration of a CLIPModel sets."""
    vision: Any = clip.config.vision_config
    text: Any = clip.config.text_config
    return Limits(vision.image_size, text.max_position_embeddings, text.vocab_size)


def find_clip(name: str, weights: Path | None, what: str) -> Path:
    """Folder of a saved CLIPModel with its tokenizer, or a file with weights of the published sizes.

    Raises:
        FileNotFoundError: nothing given or found, or a file is missing in the folder.
    """
    path = need_weights(name, weights, what)
    if path.is_file():
        return path
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"scorer {name!r}: {path} holds no config.json; give the folder of a saved CLIPModel, or a file "
            "with weights of the published sizes"
        )
    if not any((path / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"scorer {name!r}: {path} holds no tokenizer; save the model's tokenizer into the same folder"
        )
    return path


def clip_config(path: Path) -> CLIPConfig:
    """Configuration of a folder, or of ViT-H/14 as LAION trained it, for a file that has none."""
    from transformers import CLIPConfig

    if path.is_dir():
        return CLIPConfig.from_pretrained(path, local_files_only=True)
    text, vision = (
        {"hidden_size": w, "intermediate_size": f, "num_hidden_layers": n, "num_attention_heads": 16}
        for w, f, n in ((1024, 4096, 24), (1280, 5120, 32))
    )
    shared = {"hidden_act": "gelu", "projection_dim": 1024}
    return CLIPConfig(
        text_config={**text, **shared, "eos_token_id": 2},  # 2 makes transformers pool at the largest id
        vision_config={**vision, **shared, "patch_size": 14, "image_size": 224},
        projection_dim=1024,
    )


def load_clip(path: Path) -> CLIPModel:
    """Build a CLIPModel in float32; every key must be there and none may be left over.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: they do not fit the configuration key by key.
    """
    from transformers import CLIPModel

    config = clip_config(path)
    clip = build(lambda: CLIPModel(config), read_state(path), where=path, ignore=OLD_KEYS)
    restore_positions(clip)
    return clip.float()


def restore_positions(model: nn.Module) -> None:
    """Make the position ids anew that no checkpoint holds, in every module that has them."""
    for module in model.modules():
        ids = module._buffers.get("position_ids")
        if ids is not None:
            module.register_buffer("position_ids", torch.arange(ids.shape[-1])[None], persistent=False)


def load_tokenizer(path: Path, clip: CLIPModel) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder, or CLIP's own for a file.

    Raises:
        ValueError: it has more tokens than the model.
    """
    from transformers import CLIPTokenizer

    if path.is_dir():
        tokenizer = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    else:
        tokenizer = openai_tokenizer()
    words = limits(clip).words
    if len(tokenizer) > words:
        raise ValueError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens but the model knows {words} only"
        )
    return tokenizer


def openai_tokenizer() -> PreTrainedTokenizerBase:
    """CLIP's tokenizer as transformers has it, from the vocabulary that comes with open_clip."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    simple = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {names.get(token, token): i for token, i in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], limit: int, *, pad_to_limit: bool = False
) -> Tensor:
    """(B, L) token ids, cut at the limit with the end token kept, padded to the longest or to the limit.

    Raises:
        ValueError: a prompt holds a special token of the tokenizer.
    """
    refuse_special(prompts, tokenizer.all_special_tokens)
    found = tokenizer(
        list(prompts),
        padding="max_length" if pad_to_limit else "longest",
        truncation=True,
        max_length=min(tokenizer.model_max_length, limit),
        return_tensors="pt",
    )
    return torch.as_tensor(found["input_ids"])


def cast_towers(clip: CLIPModel, dtype: torch.dtype) -> None:
    """Cast the towers. logit_scale stays float32: exp() would turn its rounding into 1 % of the score."""
    for part in (clip.text_model, clip.vision_model, clip.text_projection, clip.visual_projection):
        part.to(dtype=dtype)


def unit(features: Tensor | BaseModelOutputWithPooling) -> Tensor:
    """Normalise what CLIP's ``get_*_features`` gives: a tensor in transformers 4, an output object in 5."""
    tensor = features if isinstance(features, Tensor) else cast(Tensor, features.pooler_output)
    return F.normalize(tensor.float(), dim=-1)


class ClipHfScorer(TwoTower):
    """Two-tower scorer on a transformers CLIPModel. The towers run in the precision they are in.

    Args:
        clip: the model; it is put into evaluation mode and frozen.
        tokenizer: its tokenizer; the longest prompt is the shorter of both their limits.
        preprocess: transform of the pictures; None is CLIP's at the size of the vision tower.
    """

    size = "986 M"
    option_type: ClassVar[type[LoadOptions]] = PictureOptions
    preprocess: Preprocess

    def __init__(
        self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, preprocess: Preprocess | None = None
    ) -> None:
        """See the class."""
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.preprocess = preprocess or Preprocess(size=limits(clip).side)
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a folder that holds a saved CLIPModel and its tokenizer, or a file of the published sizes.

        Raises:
            FileNotFoundError: nothing given or found, or a file is missing in the folder.
            ValueError: the weights do not fit the configuration key by key.
        """
        path = find_clip(cls.name, weights, cls.weights)
        clip = load_clip(path)
        cast_towers(clip, dtype)
        preprocess = Preprocess.load(path, limits(clip).side)
        return cls(clip, load_tokenizer(path, clip), preprocess).to(device)

    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, about 100 for trained models."""
        out: Tensor = self.clip.logit_scale.float().exp()
        return out

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

    def text_weights(self) -> list[Tensor]:
        """See TwoTower."""
        return [*self.clip.text_model.parameters(), self.clip.text_projection.weight]

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save model, tokenizer and transform for ``scorers.load(name, weights=folder)``.

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
