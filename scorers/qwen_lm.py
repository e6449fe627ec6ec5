"""A local Qwen2-VL or Qwen2.5-VL that answers questions about pictures: logits and replies, in batches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor, nn

from scorers.base import ScorerBase
from scorers.loading import need_folder, read_state
from scorers.qwen import QwenPixels
from scorers.qwen_chat import END, IMAGE, Tokens, check_prompts, conversation, load_tokenizer, tokenize
from scorers.qwen_model import build_qwen, config_of, rename

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QWEN_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
QWEN_FILES = ("config.json", "preprocessor_config.json", *QWEN_TOKENIZER, "*.safetensors*")
"""What of a repository of the hub is needed: the shards, and the index of them."""
MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 16384 * 28 * 28
"""What Qwen2-VL's own processor uses where a folder has no preprocessor_config.json."""


class Chat(Protocol):
    """What a scorer that asks a model needs; a model behind a server can stand in."""

    def replies(
        self, pictures: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """Reply to B questions about K pictures each; ``pictures`` are K tensors (B, 3, H, W) in [0, 1]."""
        ...

    def next_logits(
        self,
        pictures: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        words: Sequence[str],
    ) -> Tensor:
        """(B, W) float32 logits of W words as the next token after B beginnings of an answer."""
        ...


class QwenChat(nn.Module):
    """A frozen Qwen2-VL with its tokenizer and its transform of pictures.

    Args:
        model: Qwen2VLForConditionalGeneration or Qwen2_5_VLForConditionalGeneration.
        tokenizer: its tokenizer.
        preprocess: transform of the pictures.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, preprocess: QwenPixels) -> None:
        """See the class."""
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, name: str, weights: Path | None, what: str, *, device: str | torch.device, dtype: torch.dtype
    ) -> QwenChat:
        """Load a folder as the hub has it: weights (old or new key names), config.json, tokenizer.

        Args:
            name: of the scorer, for errors.
            weights: the folder.
            what: what must be had, for errors.
            device: where the model computes.
            dtype: precision of its weights.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: the weights do not fit the configuration key by key, or the tokenizer not the model.
        """
        folder = need_folder(name, weights, what)
        state = rename(read_state(folder))
        words = state.get("model.language_model.embed_tokens.weight")
        if words is None:
            raise ValueError(
                f"{folder} holds no Qwen2-VL: there is no model.embed_tokens.weight in the weights"
            )
        config = config_of(folder, len(words))
        if config.tie_word_embeddings:
            state.setdefault("lm_head.weight", words)
        model = build_qwen(lambda: _network(config), state, where=folder, dtype=dtype)
        tokenizer = load_tokenizer(name, folder, len(words), [IMAGE, END])
        return cls(model, tokenizer, _pixels(folder, config.vision_config)).to(device)

    def logits(
        self,
        pictures: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        last: int = 1,
    ) -> Tensor:
        """(B, last, V) float32 logits after each of the last tokens, differentiable in the pictures.

        Args:
            pictures: K tensors (B, 3, H, W) in [0, 1], shown in this order.
            questions: B texts, checked for special tokens by the caller (see ``check``).
            answers: B beginnings of the answer; None is nothing yet.
            last: how many tokens at the end.
        """
        tokens, inputs = self._inputs(pictures, questions, answers or [""] * len(questions))
        out = self.model(
            input_ids=tokens.ids, attention_mask=tokens.mask, logits_to_keep=last, use_cache=False, **inputs
        )
        found: Tensor = out.logits.float()
        return found

    def next_logits(
        self,
        pictures: Sequence[Tensor],
        questions: Sequence[str],
        answers: Sequence[str],
        words: Sequence[str],
    ) -> Tensor:
        """See Chat; raises ValueError if a word is not one token."""
        ids = [self.token(word) for word in words]
        if None in ids:
            raise ValueError(f"{words[ids.index(None)]!r} is more than one token of this model")
        return self.logits(pictures, questions, answers)[:, -1][:, torch.tensor(ids, device=self.device)]

    def replies(
        self, pictures: Sequence[Tensor], questions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """Most likely reply token by token, without special tokens; see Chat."""
        tokens, inputs = self._inputs(pictures, questions, [""] * len(questions))
        end = self.token(END)
        with torch.no_grad():
            ids = self.model.generate(
                input_ids=tokens.ids,
                attention_mask=tokens.mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
                **inputs,
            )
        found: list[str] = self.tokenizer.batch_decode(
            ids[:, tokens.ids.shape[1] :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return found

    def check(self, prompts: Sequence[str]) -> None:
        """Raise ValueError if a prompt spells out a special token."""
        check_prompts(self.tokenizer, prompts)

    def token(self, word: str) -> int | None:
        """Id of a word that is one token, else None."""
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.parameters()).device

    def _inputs(
        self, pictures: Sequence[Tensor], questions: Sequence[str], answers: Sequence[str]
    ) -> tuple[Tokens, dict[str, Tensor]]:
        counts = [self.preprocess.tokens(*x.shape[-2:]) for x in pictures]
        texts = [conversation(q, counts, a) for q, a in zip(questions, answers, strict=True)]
        tokens = tokenize(self.tokenizer, texts, left=True, device=self.device)
        shown = [self.preprocess.patches(x.to(self.device)) for x in pictures]
        rows = [patches.unflatten(0, (len(questions), -1)) for patches, _ in shown]  # K of (B, n, D)
        return tokens, {
            "pixel_values": torch.cat(rows, 1).flatten(0, 1),
            "image_grid_thw": torch.stack([grid for _, grid in shown], 1).flatten(0, 1),  # (B * K, 3)
            "mm_token_type_ids": (tokens.ids == self.model.config.image_token_id).int(),
        }


class ChatScorer(ScorerBase):
    """A scorer that asks a local model: made of one, whatever else it can be told."""

    def __init__(self, chat: Chat) -> None:
        """``chat`` is the model."""
        super().__init__()
        self.chat = chat

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a model folder; see ``QwenChat.load`` for what it holds and what is raised."""
        return cls(QwenChat.load(cls.name, weights, cls.weights, device=device, dtype=dtype))


def _network(config: Any) -> nn.Module:
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration

    old = config.model_type == "qwen2_vl"
    network: nn.Module = (Qwen2VLForConditionalGeneration if old else Qwen2_5_VLForConditionalGeneration)(
        config
    )
    return network


def _pixels(folder: Path, vision: Any) -> QwenPixels:
    file = folder / "preprocessor_config.json"
    given = json.loads(file.read_text()) if file.is_file() else {}
    size = given.get("size") or {}
    return QwenPixels(
        min_pixels=given.get("min_pixels") or size.get("shortest_edge", MIN_PIXELS),
        max_pixels=given.get("max_pixels") or size.get("longest_edge", MAX_PIXELS),
        patch=vision.patch_size,
        merge=vision.spatial_merge_size,
    )
