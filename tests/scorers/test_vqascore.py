"""VQAScore and the local chat model: published formula, logits by hand, batches, gradients, loading."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import scorers
from scorers.qwen import QwenPixels
from scorers.qwen_chat import END
from scorers.vqascore import VQAScore, answer_log_likelihood
from tests.scorers.test_losses import golden
from tests.scorers.tiny_qwen import golden_state, tiny_config, tiny_tokenizer, write_folder

PROMPTS = ["a cat", "a red dog a red dog", "trees"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = {k: v for k, v in golden_state().items() if not k.startswith("rm_head")}
    return write_folder(tmp_path_factory.mktemp("weights") / "vqascore", state)


@pytest.fixture(scope="module")
def scorer(folder: Path) -> VQAScore:
    loaded = scorers.load("vqascore", weights=folder)
    assert isinstance(loaded, VQAScore)
    assert (loaded.preprocess.min_pixels, loaded.preprocess.max_pixels) == (3136, 12845056)
    return loaded


def test_published_formula() -> None:
    data = golden("vqascore_t5")
    found = answer_log_likelihood(data["logits"], data["labels"]).exp()
    torch.testing.assert_close(found, data["score"], rtol=1e-5, atol=1e-5)


def test_yes_against_no(scorer: VQAScore) -> None:
    x = torch.rand(1, 3, 56, 56)
    vocabulary = scorer.chat.tokenizer.get_vocab()
    assert scorer.yes == sorted(vocabulary[w] for w in ("Yes", "yes"))
    logits = scorer.chat.logits([x], ['Does this figure show "a cat"? Please answer yes or no.'])[0, -1]
    p = logits.softmax(0)
    yes, no = (sum(p[vocabulary[w]] for w in words) for words in (("Yes", "yes"), ("No", "no")))
    found = scorer.details(x, ["a cat"])
    torch.testing.assert_close(found.score[0], yes / (yes + no))
    assert found.raw is not None
    torch.testing.assert_close(found.raw.sigmoid(), found.score)


def test_likelihood_form_is_teacher_forcing(scorer: VQAScore) -> None:
    x = torch.rand(2, 3, 56, 56)
    likely = VQAScore(scorer.chat, "likelihood").score_tensor(x, PROMPTS[:2])
    asked = [f'Does this figure show "{prompt}"? Please answer yes or no.' for prompt in PROMPTS[:2]]
    first = scorer.chat.logits([x], asked)[:, -1].softmax(1)[:, scorer.chat.token("Yes")]
    second = scorer.chat.logits([x], asked, ["Yes"] * 2)[:, -1].softmax(1)[:, scorer.chat.token(END)]
    torch.testing.assert_close(likely, (first * second).sqrt(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="form must be"):
        VQAScore(scorer.chat, "maybe")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["yes-no", "likelihood"])
def test_batch_equals_single_and_an_ascent_step_raises_the_score(scorer: VQAScore, form: str) -> None:
    scorer = VQAScore(scorer.chat, form)  # type: ignore[arg-type]
    x = torch.rand(3, 3, 56, 84, generator=torch.manual_seed(0), requires_grad=True)
    before = scorer.score_tensor(x, PROMPTS)
    single = torch.cat([scorer.score_tensor(x[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(before, single, rtol=0, atol=1e-5)
    assert float(before.std()) > 1e-5
    raw = scorer.details(x, PROMPTS).raw
    assert raw is not None
    (grad,) = torch.autograd.grad(raw.sum(), x)
    step = 0.05 * grad / grad.abs().amax((1, 2, 3), keepdim=True)
    after = scorer.details((x + step).detach(), PROMPTS).raw
    assert after is not None
    assert (after > raw).all()


def test_pictures_are_shown_in_order(scorer: VQAScore) -> None:
    chat, x, y = scorer.chat, torch.rand(2, 3, 56, 56), torch.rand(2, 3, 56, 84)
    both = chat.logits([x, y], ["a cat", "red"])
    torch.testing.assert_close(chat.logits([x[1:], y[1:]], ["red"])[0], both[1], rtol=0, atol=1e-5)
    swapped = chat.logits([y, x], ["a cat", "red"])
    assert (swapped - both).abs().max() > 1e-4


def test_replies_are_greedy(scorer: VQAScore) -> None:
    chat, x = scorer.chat, torch.rand(2, 3, 56, 56)
    (first, second) = chat.replies([x], ["a cat", "a red dog a"], max_new_tokens=3)
    assert (first, second) == tuple(
        chat.replies([x[i : i + 1]], [q], max_new_tokens=3)[0] for i, q in enumerate(["a cat", "a red dog a"])
    )
    best = int(chat.logits([x[:1]], ["a cat"])[0, -1].argmax())
    assert first.split()[:1] == chat.tokenizer.decode([best], skip_special_tokens=True).split()[:1]
    with pytest.raises(ValueError, match="more than one token"):
        chat.next_logits([x], ["a", "a"], ["", ""], ["a cat"])


def test_bad_input(scorer: VQAScore, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="special token"):
        scorer.score_tensor(torch.rand(1, 3, 56, 56), ["a <|image_pad|>"])
    state = {k: v for k, v in golden_state().items() if not k.startswith("rm_head")}
    part = write_folder(tmp_path / "part", {k: v for k, v in state.items() if k != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"missing.*lm_head\.weight"):
        scorers.load("vqascore", weights=part)
    save_file({"weight": torch.ones(1)}, part / "model.safetensors")
    with pytest.raises(ValueError, match="holds no Qwen2-VL"):
        scorers.load("vqascore", weights=part)
    save_file(state, part / "model.safetensors")
    tiny_tokenizer(["[UNK]", "yes"]).save_pretrained(part)
    with pytest.raises(ValueError, match="'No'"):
        scorers.load("vqascore", weights=part)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        scorers.load("vqascore", weights=folder / "config.json")
    with pytest.raises(FileNotFoundError, match="needs weights"):
        scorers.load("vqascore")


def test_qwen2_5_and_tied_words(tmp_path: Path) -> None:
    given = tiny_config()
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
    vision |= {"fullatt_block_indexes": [1], "window_size": 56, "patch_size": 14}
    config = {**given, "model_type": "qwen2_5_vl", "tie_word_embeddings": True, "vision_config": vision}
    torch.manual_seed(0)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").write_text(json.dumps(config))
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(tmp_path / "made")).eval()
    state = {k: v.clone() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    folder = write_folder(tmp_path / "saved", state)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text('{"min_pixels": 784, "max_pixels": 7840}')
    scorer = scorers.load("vqascore", weights=folder)
    assert isinstance(scorer, VQAScore)
    assert scorer.preprocess == QwenPixels(min_pixels=784, max_pixels=7840)
    x = torch.rand(1, 3, 56, 84)
    tokens, inputs = scorer.chat._inputs([x], ["a cat"], [""])
    theirs = model(input_ids=tokens.ids, attention_mask=tokens.mask, **inputs).logits[:, -1]
    torch.testing.assert_close(scorer.chat.logits([x], ["a cat"])[:, -1], theirs, rtol=1e-5, atol=1e-6)
