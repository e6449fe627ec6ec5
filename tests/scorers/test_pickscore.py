"""The CLIP-type scorer: published numbers, preprocessing, broadcasting, caching, saving and loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

import scorers
from scorers.base import ScorerBase
from scorers.pickscore import PickScore
from scorers.preprocess import Preprocess
from scorers.protocol import ScoreOutput, Scorer
from tests.scorers.conftest import GOLDEN, tiny_tokenizer
from tests.scorers.test_losses import golden

PROMPTS = ["a cat", "a red dog", "trees"]


def golden_scorer() -> PickScore:
    sizes = json.loads((GOLDEN / "pickscore_tiny_config.json").read_text())
    config = CLIPConfig(
        text_config=sizes["text"], vision_config=sizes["vision"], projection_dim=sizes["projection_dim"]
    )
    clip = CLIPModel(config)
    clip.load_state_dict(load_file(GOLDEN / "pickscore_tiny_state_dict.safetensors"), strict=True)
    return PickScore(clip, tiny_tokenizer())


def test_scores_and_pixel_gradients_of_the_published_code() -> None:
    scorer, data = golden_scorer(), golden("pickscore_tiny")
    pixels = data["image_0"].clone().requires_grad_()
    text = scorer.token_features(data["input_ids"])
    image_0, image_1 = scorer.image_features(pixels), scorer.image_features(data["image_1"])
    score_0, score_1 = (scorer.scale() * (text * image).sum(1) for image in (image_0, image_1))
    torch.testing.assert_close(text, data["text_features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(image_1, data["image_1_features"], rtol=1e-5, atol=1e-5)
    # 1e-5 of the cosine; the score is 100 times that
    torch.testing.assert_close(score_0, data["score_0"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(score_1, data["score_1"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close((score_0 - score_1).sigmoid(), data["prob_0"], rtol=1e-4, atol=1e-5)
    score_0.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(pixels.grad, data["grad_image_0"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 96), (120, 80), (64, 161), (40, 24), (32, 32), (32, 50)])
def test_preprocessing_is_close_to_the_image_processor(size: tuple[int, int]) -> None:
    smooth = torch.rand(1, 3, size[0] // 8 + 2, size[1] // 8 + 2, generator=torch.manual_seed(0))
    smooth = torch.nn.functional.interpolate(smooth, size, mode="bicubic").clamp(0, 1)
    pixels = (smooth[0].permute(1, 2, 0) * 255).round().byte()
    preprocess = Preprocess(size=32)
    processor = CLIPImageProcessor(**{k: v for k, v in preprocess.to_dict().items() if k[0] != "_"})
    theirs = processor(Image.fromarray(pixels.numpy()), return_tensors="pt")["pixel_values"]
    ours = preprocess(pixels.permute(2, 0, 1)[None].float() / 255)
    gap = (ours - theirs).abs() * torch.tensor(preprocess.std)[:, None, None] * 255
    assert gap.mean() < 0.5  # in steps of an 8-bit picture; rounding alone is 0.25
    assert gap.max() < 3


def test_right_size_is_not_resampled() -> None:
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(Preprocess(size=32).fit(x), x)


def test_it_is_a_scorer(scorer: PickScore) -> None:
    assert isinstance(scorer, Scorer)
    assert scorer.higher_better
    assert scorer.differentiable
    assert "prompt" in scorer.needs


def test_call_takes_mixed_sizes_in_order_and_chunks_change_nothing(scorer: PickScore) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((32, 32), (40, 60), (32, 32))]
    whole = scorer(pictures, PROMPTS).score
    single = torch.cat(
        [scorer(picture, prompt).score for picture, prompt in zip(pictures, PROMPTS, strict=True)]
    )
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-4)
    torch.testing.assert_close(whole, scorer(pictures, PROMPTS, chunk=1).score, rtol=0, atol=1e-4)
    assert len(set(whole.tolist())) == 3


def test_one_prompt_for_all_and_mismatch(scorer: PickScore) -> None:
    pictures = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(scorer(pictures, "a cat").score, scorer(pictures, ["a cat"] * 3).score)
    with pytest.raises(ValueError, match="3 images but 2 prompts"):
        scorer(pictures, PROMPTS[:2])
    with pytest.raises(ValueError, match="give one prompt"):
        scorer(pictures)
    with pytest.raises(ValueError, match="3 prompts for 3 pictures, got 1 prompts"):
        scorer.score_tensor(pictures, ["a cat"])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        scorer.score_tensor(pictures[0], ["a cat"])


def test_gradient_reaches_pixels_and_not_weights(scorer: PickScore) -> None:
    x = torch.rand(2, 3, 50, 40, requires_grad=True)
    with torch.inference_mode():
        scorer.score_tensor(x, PROMPTS[:2])  # remembered texts must still work in a graph
    scorer.score_tensor(x, PROMPTS[:2]).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None and not p.requires_grad for p in scorer.parameters())


def test_texts_are_remembered_until_the_weights_change(
    scorer: PickScore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    tokenize = scorer.tokenize

    def counted(prompts: list[str]) -> torch.Tensor:
        asked.extend(prompts)
        return tokenize(prompts)

    monkeypatch.setattr(scorer, "tokenize", counted)
    x = torch.rand(3, 3, 32, 32)
    before = scorer.score_tensor(x, ["a", "b", "a"])
    scorer.score_tensor(x, ["b", "a", "c"])
    assert asked == ["a", "b", "c"]
    with torch.no_grad():
        scorer.clip.text_projection.weight.mul_(-1)
    torch.testing.assert_close(scorer.score_tensor(x, ["a", "b", "a"]), -before)


def test_no_memory_while_the_text_tower_is_trained(scorer: PickScore) -> None:
    scorer.requires_grad_(True)
    scorer.score_tensor(torch.rand(1, 3, 32, 32), ["a"]).sum().backward()
    assert scorer.clip.text_projection.weight.grad is not None
    scorer.score_tensor(torch.rand(1, 3, 32, 32), ["a"]).sum().backward()  # a remembered graph would be gone


def test_long_prompts_are_cut_with_their_end_token(scorer: PickScore) -> None:
    ids = scorer.tokenize(["x" * 100, "x"])
    assert ids.shape == (2, 24)
    assert ids[0, -1] == scorer.tokenizer.eos_token_id


def test_save_and_load_give_equal_scores(scorer: PickScore, folder: Path) -> None:
    again = scorers.load("pickscore", weights=folder)
    assert isinstance(again, PickScore)
    x = torch.rand(3, 3, 32, 32)
    assert torch.equal(again.score_tensor(x, PROMPTS), scorer.score_tensor(x, PROMPTS))
    assert not list(folder.glob(".saving-*"))


def test_plain_transformers_reads_the_folder(scorer: PickScore, folder: Path) -> None:
    clip, report = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(clip.text_projection.weight, scorer.clip.text_projection.weight)


def test_old_checkpoint_file(scorer: PickScore, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    x = torch.rand(3, 3, 32, 32)
    again = scorers.load("pickscore", weights=folder)
    assert torch.equal(again.score_tensor(x, PROMPTS), scorer.score_tensor(x, PROMPTS))


def test_half_precision_stays_close_and_scores_are_float32(scorer: PickScore, folder: Path) -> None:
    half = scorers.load("pickscore", weights=folder, dtype="bfloat16")
    assert isinstance(half, PickScore)
    assert half.clip.visual_projection.weight.dtype == torch.bfloat16
    assert torch.equal(half.scale(), scorer.scale())
    x = torch.rand(3, 3, 32, 32)
    found = half.score_tensor(x, PROMPTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, scorer.score_tensor(x, PROMPTS), rtol=0, atol=0.3)


def test_weights_folder_of_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCORERS_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match=r"pass weights=.*SCORERS_WEIGHTS is not set"):
        scorers.load("pickscore")
    monkeypatch.setenv("SCORERS_WEIGHTS", str(folder.parent))
    with pytest.raises(FileNotFoundError, match=r"there is no .*pickscore"):
        scorers.load("pickscore")
    shutil.copytree(folder, folder.parent / "pickscore")
    assert scorers.load("pickscore").name == "pickscore"


def test_bad_weights_are_refused(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        scorers.load("pickscore", weights=folder / "nowhere")
    with pytest.raises(ValueError, match="cannot run in 'int4'"):
        scorers.load("pickscore", weights=folder, dtype="int4")
    file = folder / "model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if k != "logit_scale"}, file)
    with pytest.raises(ValueError, match="logit_scale"):
        scorers.load("pickscore", weights=folder)
    save_file({**state, "surplus": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="surplus"):
        scorers.load("pickscore", weights=folder)
    file.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="damaged"):
        scorers.load("pickscore", weights=folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        scorers.load("pickscore", weights=folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        scorers.load("pickscore", weights=folder)


def test_output_prob_is_a_softmax_per_group() -> None:
    output = ScoreOutput(score=torch.tensor([1.0, 5.0, 2.0, 5.0]))
    p = torch.tensor([1.0, 2.0]).softmax(0)
    torch.testing.assert_close(output.prob([0, 1, 0, 1]), torch.tensor([p[0], 0.5, p[1], 0.5]))
    with pytest.raises(ValueError, match="2 group numbers for 4 scores"):
        output.prob([0, 1])


def test_a_scorer_of_ones_own_needs_few_lines() -> None:
    class Brightness(ScorerBase):
        name = "brightness"
        needs = frozenset()
        licence = "none"
        citation = "none"

        def score_tensor(self, x01: torch.Tensor, prompts: object) -> torch.Tensor:
            return x01.mean((1, 2, 3))

    found = Brightness()(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    assert found.score.tolist() == [0, 1]
