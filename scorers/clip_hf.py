"""What the scorers on a transformers CLIPModel share: reading a folder, limits, precision, unit features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers.loading import build, need_weights, read_state
from scorers.texts import refuse_special

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import CLIPModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutputWithPooling


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


def clip_folder(name: str, weights: Path | None) -> Path:
    """Folder of a saved CLIPModel with its tokenizer.

    Raises:
        FileNotFoundError: no folder given or found, or a file is missing in it.
    """
    folder = need_weights(name, weights, "the folder of a saved CLIPModel with its tokenizer")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"scorer {name!r}: {folder} holds no config.json; give the folder of a saved CLIPModel"
        )
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"scorer {name!r}: {folder} holds no tokenizer; save the model's tokenizer into the same folder"
        )
    return folder


def load_clip(folder: Path) -> CLIPModel:
    """Build the CLIPModel of a folder in float32; every key must be there and none may be left over.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: they do not fit the configuration key by key.
    """
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    # Old checkpoints carry position_ids, which are just 0, 1, 2, ... and no longer saved.
    clip = build(lambda: CLIPModel(config), read_state(folder), where=folder, ignore=["*position_ids"])
    restore_positions(clip)
    return clip.float()


def restore_positions(clip: CLIPModel) -> None:
    """Make the buffers anew that no checkpoint holds."""
    for embeddings in (clip.text_model.embeddings, clip.vision_model.embeddings):
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]


def load_tokenizer(folder: Path, clip: CLIPModel) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder.

    Raises:
        ValueError: it has more tokens than the model.
    """
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    words = limits(clip).words
    if len(tokenizer) > words:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens but the model knows {words} only"
        )
    return tokenizer


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
