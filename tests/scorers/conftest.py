"""A scorer of 60 thousand random parameters, made without diffalign."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from scorers.pickscore import PickScore

GOLDEN = Path(__file__).parents[1] / "golden" / "scorers"


def tiny_tokenizer() -> CLIPTokenizer:
    """Tokenizer that spells words letter by letter."""
    letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase)]
    tokens = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=24)


def tiny_clip(seed: int = 0) -> CLIPModel:
    """CLIP for 32 x 32 pictures."""
    torch.manual_seed(seed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 54, "max_position_embeddings": 24, "bos_token_id": 52, "eos_token_id": 53}
    vision = {"image_size": 32, "patch_size": 8}
    return CLIPModel(
        CLIPConfig(text_config={**tower, **text}, vision_config={**tower, **vision}, projection_dim=16)
    )


@pytest.fixture
def scorer() -> PickScore:
    """Tiny random PickScore."""
    return PickScore(tiny_clip(), tiny_tokenizer())


@pytest.fixture
def folder(scorer: PickScore, tmp_path: Path) -> Path:
    """The tiny scorer, saved."""
    scorer.save(tmp_path / "tiny")
    return tmp_path / "tiny"
