"""Long prompts: sentences, segments, embeddings of each family, and pictures of them."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.policy import Policy, load_policy
from diffalign.policy.long_prompts import LongPrompts, segments, split_sentences
from diffalign.world.models import clip_tokenizer
from tests.tiny import tiny_folder

LONG = "a large red circle on a blue background! a small green square; a yellow star is left of it."
FAMILIES = ["sd", "sdxl", "sd3"]


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    folder = tmp_path_factory.mktemp("tiny")
    return {family: load_policy(tiny_folder(family, folder), {"rank": 2}) for family in FAMILIES}


@pytest.fixture
def policy(request: pytest.FixtureRequest, policies: dict[str, Policy]) -> Policy:
    found = policies[request.param]
    found.set_long_prompts(None)
    return found


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A cat. A dog", ["A cat.", "A dog"]),
        ("wow! a red fox; it runs", ["wow!", "a red fox;", "it runs"]),
        ("a cat;a dog", ["a cat;", "a dog"]),
        ("Really?! Yes... maybe", ["Really?!", "Yes...", "maybe"]),
        ("one sentence\nanother", ["one sentence", "another"]),
        ("It cost 3.5 dollars, v1.2.", ["It cost 3.5 dollars, v1.2."]),
        ("Dr. Smith vs. Mr. Jones. A duel.", ["Dr. Smith vs. Mr. Jones.", "A duel."]),
        ("J. R. R. Tolkien in the U.S. Navy", ["J. R. R. Tolkien in the U.S. Navy"]),
        ("e.g. a book, i.e. that one", ["e.g. a book, i.e. that one"]),
        ("At 5 p.m. The sky is red", ["At 5 p.m.", "The sky is red"]),
        ("at 5 p.m. today", ["at 5 p.m. today"]),
        ("fog etc. and rain etc. Then sun.", ["fog etc. and rain etc.", "Then sun."]),
        ("No. 5 is red. no. it is blue", ["No. 5 is red.", "no.", "it is blue"]),
        ('He said "Stop!" Then (he left.) Good', ['He said "Stop!"', "Then (he left.)", "Good"]),
        ("1. a cat. 12. It is big", ["1. a cat.", "12. It is big"]),
        ("in the sun. a boat", ["in the sun.", "a boat"]),
        ("built in 1999. It is old", ["built in 1999.", "It is old"]),
        ("  ", []),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="abM .!?;\n\"'),3", max_size=40))
def test_nothing_is_lost(text: str) -> None:
    whole = "".join(text.split())
    assert "".join("".join(split_sentences(text)).split()) == whole
    tokenizer = clip_tokenizer()
    parts = segments(text, tokenizer)
    assert "".join("".join(parts).split()) == whole
    assert all(len(tokenizer(p).input_ids) <= tokenizer.model_max_length for p in parts)


@pytest.mark.parametrize("policy", ["sd"], indirect=True)
def test_embeddings_by_hand(policy: Policy) -> None:
    pipeline, parts = policy.pipeline, ["a red circle.", "a blue square!"]
    whole = {p: policy.encode_prompts([p])[0]["text"] for p in [*parts, ""]}
    policy.set_long_prompts(LongPrompts(length=20, tail=4))
    (row,) = policy.encode_prompts([" ".join(parts)])
    counts = [len(pipeline.tokenizer(p).input_ids) - 1 for p in parts]  # the end is dropped, the start kept
    padding = whole[""][-4:].mean(0)
    expected = [whole[p][:n] for p, n in zip(parts, counts, strict=True)]
    expected += [padding.expand(20 - sum(counts), -1)]
    torch.testing.assert_close(row["text"], torch.cat(expected))
    (empty,) = policy.encode_prompts([""])
    torch.testing.assert_close(empty["text"], torch.cat([whole[""][:1], padding.expand(19, -1)]))


@pytest.mark.parametrize("policy", FAMILIES, indirect=True)
def test_every_word_counts_and_pictures_show_it(policy: Policy) -> None:
    other = LONG.replace("yellow star", "white star")
    short = policy.encode_prompts([LONG, other])
    assert torch.equal(short[0]["text"][:16], short[1]["text"][:16]), "CLIP's window ends before the star"
    usual = policy.encoder_id("text")
    policy.set_long_prompts(LongPrompts(length=48))
    assert policy.encoder_id("text") != usual
    rows = policy.encode_prompts([LONG, other, ""])
    t5 = 32 if policy.family.name == "sd3" else 0
    assert [len(r["text"]) for r in rows] == [48 + t5] * 3
    assert not torch.allclose(rows[0]["text"][:48], rows[1]["text"][:48])
    pictures = policy.generate([LONG, LONG], [3, 4], steps=2)
    assert pictures.shape == (2, 3, 64, 64)
    torch.testing.assert_close(
        policy.generate([LONG], [4], steps=2), pictures[1:], rtol=1e-4, atol=1e-5
    )  # of its own seed and prompt only
    assert not torch.allclose(policy.generate([other], [4], steps=2), pictures[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["sd3"], indirect=True)
def test_t5_reads_the_prompt_whole(policy: Policy) -> None:
    (usual,) = policy.encode_prompts([LONG])
    policy.set_long_prompts(LongPrompts(length=40))
    (row,) = policy.encode_prompts([LONG])
    torch.testing.assert_close(row["text"][40:], usual["text"][16:])
    assert row["pooled"].shape == usual["pooled"].shape


@pytest.mark.parametrize("policy", ["sdxl"], indirect=True)
def test_the_unconditional_of_sdxl_stays_zeros(policy: Policy) -> None:
    policy.set_long_prompts(LongPrompts(length=30))
    (empty,) = policy.encode_prompts([""])
    assert empty["text"].shape[0] == 30
    assert not any(v.any() for v in empty.values())


@pytest.mark.parametrize("policy", ["sd"], indirect=True)
def test_training_takes_what_pictures_take(policy: Policy) -> None:
    policy.set_long_prompts(LongPrompts(length=24))
    cond = policy.collate_prompts(policy.encode_prompts([LONG, "a red circle"]))
    out = policy.predict(torch.randn(2, 8, 8, 8), torch.tensor([5, 500]), cond)
    assert out.shape == (2, 8, 8, 8)


@pytest.mark.parametrize("policy", ["sdxl"], indirect=True)
def test_what_is_wrong_is_named(
    policy: Policy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.set_long_prompts(LongPrompts(length=10))
    with caplog.at_level(logging.WARNING):
        policy.encode_prompts([LONG, "a"])
    assert "1 of 2 prompts have more than 10 tokens" in caplog.text
    monkeypatch.setattr(policy.pipeline, "tokenizer_2", clip_tokenizer(("circle",)))
    with pytest.raises(ValueError, match="towers of one vocabulary"):
        policy.encode_prompts(["a red circle"])
    with pytest.raises(ValueError, match=r"long_prompts\.length is 1"):
        LongPrompts(length=1)
