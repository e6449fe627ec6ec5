"""HPSv3: published numbers and gradients, prompt, positions, batches, loading, bad input."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import scorers
from scorers.hpsv3 import REWARD, HPSv3, question
from scorers.learners import learner_for
from scorers.losses_reward import hpsv3_loss
from scorers.protocol import ScoreOutput
from scorers.qwen import QwenPixels
from scorers.qwen_chat import Tokens, template
from scorers.train import Vote, evaluate, preset, train_scorer
from tests.scorers.test_losses import golden
from tests.scorers.tiny_qwen import golden_state, tiny_tokenizer, write_folder

PROMPTS = ["a cat", "a red dog a red dog", "trees"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("weights") / "hpsv3", golden_state(), "HPSv3.safetensors")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> HPSv3:
    loaded = scorers.load("hpsv3", weights=folder)
    assert isinstance(loaded, HPSv3)
    assert loaded.preprocess == QwenPixels(size=448)
    loaded.preprocess = QwenPixels(size=84)  # 9 tokens and not 256, for speed
    return loaded


def test_scores_and_gradients_of_the_published_code(scorer: HPSv3) -> None:
    data = golden("hpsv3_tiny")
    patches = data["pixel_values"].clone().requires_grad_()
    tokens = Tokens(data["input_ids"], data["attention_mask"])
    assert scorer.reward_id == 157
    out = scorer.network(tokens, patches, data["image_grid_thw"], scorer.reward_id)
    torch.testing.assert_close(out, data["logits"], rtol=1e-5, atol=1e-5)
    assert (out - data["logits_mrope"]).abs().max() > 1e-4  # the positions of Qwen2-VL itself give others
    out.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(patches.grad, data["grad_pixel_values"], rtol=1e-3, atol=1e-7)


def test_question_is_the_published_one() -> None:
    wanted = {"hpsv3_instruction": (2523, "0393599dad45a971"), "hpsv3_suffix": (67, "2471faca094ae5bd")}
    for name, (length, digest) in wanted.items():
        text = template(name)
        assert (len(text), hashlib.sha256(text.encode()).hexdigest()[:16]) == (length, digest)
    asked = question("a {curly} cat")
    assert "Textual prompt - a {curly} cat\n\n\n\nPlease" in asked
    assert asked.count(REWARD) == 1


def test_batch_equals_single_and_padding_has_no_influence(scorer: HPSv3) -> None:
    x = torch.rand(3, 3, 40, 56, generator=torch.manual_seed(0))
    whole = scorer.mu_log_sigma(x, PROMPTS)
    single = torch.cat([scorer.mu_log_sigma(x[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-5)
    assert float(whole.std(0).min()) > 1e-4


def test_an_ascent_step_raises_the_score(scorer: HPSv3) -> None:
    x = torch.rand(2, 3, 40, 56, generator=torch.manual_seed(0), requires_grad=True)
    before = scorer.score_tensor(x, PROMPTS[:2])
    (grad,) = torch.autograd.grad(before.sum(), x)
    step = 0.05 * grad / grad.abs().amax((1, 2, 3), keepdim=True)
    after = scorer.score_tensor((x + step).detach().clamp(0, 1), PROMPTS[:2])
    assert (after > before).all()


def test_sigma_is_reported_and_decides_comparisons(scorer: HPSv3) -> None:
    x = torch.rand(2, 3, 40, 56, generator=torch.manual_seed(0))
    found = scorer(x, PROMPTS[:2])
    mu, log_sigma = scorer.mu_log_sigma(x, PROMPTS[:2]).unbind(1)
    torch.testing.assert_close(found.score, mu)
    torch.testing.assert_close(found.std, log_sigma.exp())
    a = ScoreOutput(score=torch.tensor([2.0]), std=torch.tensor([3.0]))
    b = ScoreOutput(score=torch.tensor([1.0]), std=torch.tensor([4.0]))
    assert scorer.pair(a, b).prob.tolist() == pytest.approx([0.5793], abs=1e-4)  # Phi(1 / 5)
    assert scorer.pair(a, b).logit.tolist() == [1.0]


def test_prompts_with_special_tokens_are_refused(scorer: HPSv3) -> None:
    for word in (REWARD, "<|image_pad|>", "<|im_end|>"):
        with pytest.raises(ValueError, match="special token"):
            scorer.score_tensor(torch.rand(1, 3, 28, 28), [f"a {word} cat"])


@pytest.mark.slow
def test_save_load_and_precision(scorer: HPSv3, folder: Path, tmp_path: Path) -> None:
    scorer.save(tmp_path)
    assert set(load_file(tmp_path / "HPSv3.safetensors")) == set(golden_state()) - {"lm_head.weight"}
    x = torch.rand(1, 3, 28, 28)
    again = scorers.load("hpsv3", weights=tmp_path)
    assert isinstance(again, HPSv3)
    scored = HPSv3(again.network, again.tokenizer, scorer.preprocess).score_tensor(x, ["a"])
    torch.testing.assert_close(scored, scorer.score_tensor(x, ["a"]), rtol=0, atol=1e-6)
    half = scorers.load("hpsv3", weights=folder, dtype="bfloat16")
    assert isinstance(half, HPSv3)
    language = half.network.model.language_model
    assert language.embed_tokens.weight.dtype == torch.bfloat16
    assert half.network.rm_head[0].weight.dtype == torch.float32
    assert torch.equal(language.rotary_emb.inv_freq, scorer.network.model.language_model.rotary_emb.inv_freq)
    assert not any(b.is_meta for b in half.buffers())
    half.preprocess = scorer.preprocess
    torch.testing.assert_close(half.score_tensor(x, ["a"]), scorer.score_tensor(x, ["a"]), rtol=0, atol=0.05)


def test_bad_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    state = golden_state()
    part = write_folder(tmp_path / "part", {k: v for k, v in state.items() if k != "rm_head.5.bias"})
    with pytest.raises(ValueError, match=r"missing.*rm_head\.5\.bias"):
        scorers.load("hpsv3", weights=part)
    save_file({**state, "model.surplus": torch.ones(1)}, part / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected.*model\.surplus"):
        scorers.load("hpsv3", weights=part)
    short = {k: v[:157] if k.endswith("embed_tokens.weight") else v for k, v in state.items()}
    save_file(short, part / "model.safetensors")
    with pytest.raises(ValueError, match="no row for"):
        scorers.load("hpsv3", weights=part)
    save_file({"logit_scale": torch.ones(1)}, part / "model.safetensors")
    with pytest.raises(ValueError, match="does not hold HPSv3"):
        scorers.load("hpsv3", weights=part)
    save_file(state, part / "model.safetensors")
    config = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    with pytest.raises(ValueError, match="only qwen2_vl"):
        scorers.load("hpsv3", weights=part)
    (part / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        scorers.load("hpsv3", weights=part)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        scorers.load("hpsv3", weights=folder / "HPSv3.safetensors")
    with pytest.raises(FileNotFoundError, match="needs weights"):
        scorers.load("hpsv3")


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    part = write_folder(tmp_path / "part", golden_state())
    tiny_tokenizer([f"w{i}" for i in range(200)]).save_pretrained(part)
    with pytest.raises(ValueError, match="tokenizer"):
        scorers.load("hpsv3", weights=part)
    for file in part.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        scorers.load("hpsv3", weights=part)


def two_votes() -> list[Vote]:
    """One comparison, told both ways round."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.rand(3, 28, 28, generator=generator) for _ in range(2))
    return [Vote(first, second, "a", 1.0), Vote(second, first, "a", 0.0)]


def test_it_learns_by_its_published_loss(scorer: HPSv3) -> None:
    votes, label = two_votes(), torch.tensor([1.0, 0.0])
    pictures = torch.stack([torch.as_tensor(v[side]) for side in (0, 1) for v in votes])
    learner = learner_for(scorer)
    with torch.no_grad():
        first, second = scorer.mu_log_sigma(learner.read([*pictures]), ["a"] * 4).chunk(2)
        torch.manual_seed(3)
        found = learner.each(votes, "hpsv3")
    torch.manual_seed(3)
    torch.testing.assert_close(found, hpsv3_loss(first, second, label), rtol=1e-4, atol=1e-5)
    assert learner.dropout


@pytest.mark.slow
def test_it_trains(folder: Path) -> None:
    scorer = scorers.load("hpsv3", weights=folder)
    options = replace(preset("hpsv3"), epochs=None, steps=2, batch=2, learning_rate=1e-3, eval_every=2)
    before = evaluate(scorer, two_votes(), 0.0)  # type: ignore[arg-type]
    after = train_scorer(scorer, two_votes(), two_votes(), options).validation  # type: ignore[arg-type]
    assert after.log_loss < before.log_loss
