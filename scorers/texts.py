"""What the text towers share: memory of their features, and care about special tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

Encode = Callable[[list[str]], Tensor]


class TextCache:
    """Remembers the features of the texts used last, until a weight of the tower that made them changes.

    Args:
        limit: how many texts are remembered.
    """

    def __init__(self, limit: int = 4096) -> None:
        """See the class.

        Raises:
            ValueError: ``limit`` below 1.
        """
        if limit < 1:
            raise ValueError(f"a cache of texts must hold at least 1, got {limit}")
        self.limit = limit
        self._found: OrderedDict[str, Tensor] = OrderedDict()
        self._state = -1

    def __len__(self) -> int:
        """How many texts are remembered now."""
        return len(self._found)

    def features(self, texts: Sequence[str], encode: Encode, weights: Iterable[Tensor]) -> Tensor:
        """Features (B, ...) of B texts; each text is encoded once.

        While one of the weights is trained nothing is remembered, so that gradients reach it.

        Args:
            texts: B texts.
            encode: turns n texts into (n, ...) features.
            weights: tensors that the features depend on.
        """
        parts = list(weights)
        if any(p.requires_grad for p in parts):
            return encode(list(texts))
        self._forget_if_changed(parts)
        wanted = list(dict.fromkeys(texts))
        found = {t: self._found[t] for t in wanted if t in self._found}
        missing = [t for t in wanted if t not in found]
        if missing:
            # Plain tensors, not those of an inference_mode around us, so that a later backward may use them.
            with torch.inference_mode(False), torch.no_grad():
                found |= {t: f.clone() for t, f in zip(missing, encode(missing), strict=True)}
        self._remember(found)
        return torch.stack([found[t] for t in texts])

    def _remember(self, found: dict[str, Tensor]) -> None:
        for text, feature in found.items():
            self._found[text] = feature
            self._found.move_to_end(text)
        while len(self._found) > self.limit:
            self._found.popitem(last=False)

    def _forget_if_changed(self, weights: Sequence[Tensor]) -> None:
        """Drop everything if a weight was written since (tensors count changes, but not those of .data)."""
        state = hash(tuple((p.data_ptr(), p._version) for p in weights))
        if state != self._state:
            self._found.clear()
        self._state = state


def refuse_special(texts: Sequence[str], tokens: Iterable[str]) -> None:
    """See that no text spells out a special token, which a tokenizer would take for the real one.

    Args:
        texts: prompts.
        tokens: the tokenizer's special tokens, e.g. ``<|endoftext|>``.

    Raises:
        ValueError: a text holds one; what stands behind an end token would silently be ignored.
    """
    names = [t for t in tokens if t]
    for i, text in enumerate(texts):
        for name in names:
            if name in text:
                raise ValueError(
                    f"prompt {i} holds the special token {name!r}, which the tokenizer would obey and not "
                    f"read; remove it: {text!r}"
                )
