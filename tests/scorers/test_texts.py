"""The memory of text features: what is encoded, what is forgotten, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scorers.texts import TextCache, refuse_special


class Tower(nn.Module):
    """Counts what it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()), requires_grad=False)
        self.asked: list[str] = []

    def encode(self, texts: list[str]) -> Tensor:
        self.asked += texts
        return self.weight * torch.tensor([[float(len(t)), 1.0] for t in texts])


def test_each_text_is_encoded_once_until_a_weight_changes() -> None:
    tower, cache = Tower(), TextCache()
    first = cache.features(["a", "bb", "a"], tower.encode, tower.parameters())
    assert first[:, 0].tolist() == [1, 2, 1]
    cache.features(["bb", "ccc"], tower.encode, tower.parameters())
    assert tower.asked == ["a", "bb", "ccc"]
    with torch.no_grad():
        tower.weight.mul_(2)
    assert torch.equal(cache.features(["a"], tower.encode, tower.parameters()), 2 * first[:1])


def test_the_oldest_texts_are_forgotten() -> None:
    tower, cache = Tower(), TextCache(2)
    for texts in (["a", "b"], ["a"], ["c"], ["a"], ["b"]):
        cache.features(texts, tower.encode, tower.parameters())
    assert tower.asked == ["a", "b", "c", "b"]
    assert len(cache) == 2
    assert cache.features(["a", "b", "c"], tower.encode, tower.parameters()).shape == (3, 2)
    with pytest.raises(ValueError, match="at least 1"):
        TextCache(0)


def test_nothing_is_remembered_in_training_and_a_remembered_text_works_in_a_graph() -> None:
    tower, cache = Tower(), TextCache()
    with torch.inference_mode():
        cache.features(["a"], tower.encode, tower.parameters())
    x = torch.ones(1, 2, requires_grad=True)
    (x * cache.features(["a"], tower.encode, tower.parameters())).sum().backward()
    tower.weight.requires_grad_(True)
    cache.features(["a"], tower.encode, tower.parameters()).sum().backward()
    assert tower.weight.grad is not None
    assert tower.asked == ["a", "a"]


def test_special_tokens() -> None:
    refuse_special(["a <b>", "c"], ["<end>", ""])
    with pytest.raises(ValueError, match="prompt 1 holds the special token '<end>'"):
        refuse_special(["a", "b <end> c"], ["<start>", "<end>"])
