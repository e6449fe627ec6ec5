"""Text for Qwen2-VL and its kin: conversation layout, prompts put into templates, token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scorers.texts import refuse_special

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE = "<|image_pad|>"
"""Token that stands for one merged block of patches."""
END = "<|im_end|>"
"""Token that ends a turn."""


class Tokens(NamedTuple):
    """Token ids (B, L) int64 and their mask (B, L), 0 where a row is padded."""

    ids: Tensor
    mask: Tensor


def template(name: str) -> str:
    """Text of a published question, from the folder ``prompts``."""
    file = Path(__file__).parent / "prompts" / f"{name}.txt"
    return file.read_bytes().decode("utf-8")  # bytes, so that line ends stay as they are


def conversation(question: str, pictures: Sequence[int], answer: str = "") -> str:
    """One turn of the user and the beginning of the answer, in Qwen2-VL's layout.

    Args:
        question: what stands after the pictures.
        pictures: how many tokens each picture takes.
        answer: what the model is taken to have said already.
    """
    shown = "".join(f"<|vision_start|>{IMAGE * n}<|vision_end|>" for n in pictures)
    return (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{shown}{question}<|im_end|>\n<|im_start|>assistant\n{answer}"
    )


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, left: bool, device: torch.device
) -> Tokens:
    """Token ids of B texts, padded to the longest on the left or on the right."""
    rows = [torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id or 0)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return Tokens(ids.to(device), mask.to(device))


def check_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    """See that no prompt spells out a token with a meaning, such as that of a picture or of the reward.

    Raises:
        ValueError: a prompt does; it would be taken for the real one and spoil its whole batch.
    """
    refuse_special(prompts, {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})


def load_tokenizer(name: str, folder: Path, words: int, needed: Sequence[str]) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder.

    Args:
        name: of the scorer, for errors.
        folder: holds tokenizer.json or vocab.json with merges.txt.
        words: how many tokens the model knows.
        needed: tokens that must be single ones.

    Raises:
        FileNotFoundError: there is no tokenizer.
        ValueError: it lacks a needed token, or has a token the model does not know.
    """
    from transformers import AutoTokenizer

    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"scorer {name!r}: {folder} holds no tokenizer; put the Qwen2-VL model's there"
        )
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    known = tokenizer.get_vocab()
    missing = [token for token in needed if token not in known]
    if missing:
        raise ValueError(f"{folder}: the tokenizer lacks {', '.join(missing)}; it is not a Qwen2-VL's")
    if max(known.values()) >= words:
        raise ValueError(
            f"{folder}: the tokenizer's last token is {max(known.values())}, the model knows {words} tokens"
        )
    return tokenizer
