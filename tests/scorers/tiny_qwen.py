"""Folders of tiny Qwen2-VLs in the layout of the published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.scorers.conftest import GOLDEN

SPECIAL = {
    "<|endoftext|>": 150,
    "<|im_start|>": 151,
    "<|im_end|>": 152,
    "<|vision_start|>": 153,
    "<|vision_end|>": 154,
    "<|image_pad|>": 155,
    "<|video_pad|>": 156,
}
WORDS = [
    "[UNK]",
    "a",
    "cat",
    "red",
    "dog",
    "trees",
    "Yes",
    "yes",
    "No",
    "no",
    "1",
    "2",
    "3",
    "4",
    "5",
    "better",
]


def tiny_config() -> dict[str, Any]:
    """The flat config.json that Qwen2-VL checkpoints have on the hub."""
    sizes = json.loads((GOLDEN / "hpsv3_tiny_config.json").read_text())
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    keys += ("num_key_value_heads", "rope_theta", "image_token_id", "video_token_id", "vision_start_token_id")
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **{key: sizes[key] for key in keys},
        "bos_token_id": None,
        "eos_token_id": None,
        "vision_end_token_id": 154,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "mrope_section": sizes["mrope_section"]},
        "vision_config": {**sizes["vision"], "in_chans": 3},
    }


def tiny_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Words that stand alone are tokens, everything else is [UNK]; special tokens have the golden's ids."""
    vocab = {word: i for i, word in enumerate(words or WORDS)}
    vocab |= {f"[unused{i}]": i for i in range(len(vocab), 150)} | SPECIAL
    inner = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    return tokenizer


def golden_state() -> dict[str, Tensor]:
    """Weights of the golden HPSv3, under the published key names."""
    return load_file(GOLDEN / "hpsv3_tiny_state_dict.safetensors")


def write_folder(folder: Path, state: dict[str, Tensor], file: str = "model.safetensors") -> Path:
    """Write configuration, tokenizer and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    save_file(state, folder / file)
    return folder
