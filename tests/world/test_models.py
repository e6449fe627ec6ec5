"""The tiny networks: tokenizers that are the same in every process, and optimizers that hold every weight."""

from __future__ import annotations

from diffalign.world.grammar import WORDS
from diffalign.world.models import clip_tokenizer, t5_tokenizer

CLIP_IDS = [150, 26, 64, 66, 104, 140, 26, 93, 149, 151]


def test_every_word_is_one_clip_token() -> None:
    tokenizer = clip_tokenizer()
    ids = [tokenizer(word).input_ids for word in WORDS]
    assert all(len(i) == 3 for i in ids)
    assert len({i[1] for i in ids}) == len(WORDS)


def test_no_words_merges_break_another_word() -> None:
    words = ("ab", "b", "abab", "ba", "bab")
    tokenizer = clip_tokenizer(words)
    assert all(len(tokenizer(word).input_ids) == 3 for word in words)


def test_token_ids_never_change() -> None:
    # Resume states and committed text encoders hold one embedding per id: these ids are for ever.
    assert clip_tokenizer()("a large red circle on a white background").input_ids == CLIP_IDS
    assert t5_tokenizer()("a large red circle").input_ids == [3, 6, 7, 17, 1]
