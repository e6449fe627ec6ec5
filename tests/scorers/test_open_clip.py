"""HPS and CLIPScore on a tiny open_clip model: published numbers, loading, contracts, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import scorers
from scorers.clip_open import CONFIG, OpenClipScorer, load_open_clip
from scorers.clipscore import ClipScore, ClipScoreHessel, ClipScoreTorchmetrics
from scorers.hps import HpsV1, HpsV2, HpsV21
from scorers.loading import build
from scorers.preprocess import PadPreprocess, Preprocess
from tests.scorers.conftest import GOLDEN
from tests.scorers.contract import check_contract
from tests.scorers.test_losses import golden

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 28, "layers": 1, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
ALL = [HpsV1, HpsV2, HpsV21, ClipScore, ClipScoreHessel, ClipScoreTorchmetrics]


def golden_model() -> Any:
    config = json.loads((GOLDEN / "hpsv2_tiny_config.json").read_text())["open_clip_config"]
    folder = GOLDEN / "hpsv2_tiny_state_dict.safetensors"
    from open_clip import CLIP

    model = build(lambda: CLIP(**config), load_file(folder), where=folder)
    model.attn_mask = torch.full((12, 12), float("-inf")).triu(1)
    return model


def letters(texts: list[str]) -> Tensor:
    """Ids below 96 with the golden model's start (94) and end (95)."""
    rows = [[94, *(ord(c) % 90 for c in t[:10]), 95] for t in texts]
    return torch.tensor([row + [0] * (12 - len(row)) for row in rows])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a tiny random model that knows open_clip's vocabulary."""
    from open_clip import CLIP

    torch.manual_seed(0)
    model = CLIP(**TINY)
    model.sizes = TINY
    folder = tmp_path_factory.mktemp("open_clip")
    HpsV2(model).save(folder)
    return folder


def test_scores_and_pixel_gradients_of_the_published_code() -> None:
    data, scorer = golden("hpsv2_tiny"), HpsV2(golden_model(), letters)
    pixels = data["image"].clone().requires_grad_()
    image, text = scorer.image_features(pixels), scorer.token_features(data["text"])
    torch.testing.assert_close(image, data["image_features"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text, data["text_features"], rtol=1e-5, atol=1e-5)
    score = scorer.scaled((image * text).sum(1))
    torch.testing.assert_close(score, data["score"], rtol=1e-5, atol=1e-5)
    score.sum().backward()
    torch.testing.assert_close(pixels.grad, data["grad_image"], rtol=1e-4, atol=1e-5)


def test_clipscores_of_the_published_code() -> None:
    data, model = golden("clipscore"), golden_model()
    unit = torch.nn.functional.normalize
    cos = (unit(data["image_features"], dim=1) * unit(data["text_features"], dim=1)).sum(1)
    hessel = ClipScoreHessel(model, letters).scaled(cos)
    torch.testing.assert_close(hessel, data["per"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hessel.mean(), data["mean"], rtol=1e-5, atol=1e-5)
    theirs = ClipScoreTorchmetrics(model, letters).scaled(cos)
    torch.testing.assert_close(theirs, data["torchmetrics_per_unclamped"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(theirs.mean().clamp(min=0), data["torchmetrics_mean"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(ClipScore(model, letters).scaled(cos), cos)


@pytest.mark.parametrize("kind", ALL)
def test_contract(kind: type[OpenClipScorer], weights: Path) -> None:
    scorer = scorers.load(kind.name, weights)
    assert type(scorer) is kind
    if isinstance(scorer, ClipScore):
        scorer.clamp = False  # a random model's cosines have any sign, and the clamp ends the gradient
    check_contract(scorer)


def test_presets() -> None:
    model = golden_model()
    assert isinstance(HpsV2(model, letters).preprocess, PadPreprocess)
    assert HpsV1(model, letters).preprocess == Preprocess(size=28, crop="round")
    assert ClipScoreTorchmetrics(model, letters).preprocess == Preprocess(size=28)
    assert ClipScoreHessel(model, letters).range == (0.0, 2.5)
    x = torch.rand(1, 3, 28, 28)
    prefixed = ClipScore(model, letters, prefix="A photo", weight=2.5)
    plain = ClipScore(model, letters).score_tensor(x, ["A photocat"])
    torch.testing.assert_close(prefixed.score_tensor(x, ["cat"]), 2.5 * plain)
    with pytest.raises(ValueError, match="must be positive"):
        ClipScore(model, letters, weight=0)


def test_clamp_is_an_option_because_it_ends_the_gradient() -> None:
    cos = torch.tensor([-0.5, 0.5], requires_grad=True)
    scorer = ClipScoreHessel(golden_model(), letters)
    (grad,) = torch.autograd.grad(scorer.scaled(cos).sum(), cos)
    assert grad.tolist() == [0, 2.5]


def test_reference_score_by_hand() -> None:
    scorer, x = ClipScore(golden_model(), letters, weight=2.5, clamp=True), torch.rand(2, 3, 28, 28)
    cos = (scorer.encode_prompts(["a"]) * scorer.encode_prompts(["b"])).sum()
    score = scorer.score_tensor(x, ["a", "a"])
    found = scorer.reference_score(x, ["a", "a"], [["b"], ["b", "a"]])
    for value, best, s in zip(found, (cos.clamp(min=0), torch.tensor(1.0)), score, strict=True):
        expected = 2 / (1 / s + 1 / best) if s > 0 and best > 0 else torch.tensor(0.0)
        torch.testing.assert_close(value, expected)
    with pytest.raises(ValueError, match="one reference text or more for each of the 2 pictures"):
        scorer.reference_score(x, ["a", "a"], [["b"], []])


@pytest.mark.parametrize(("kind", "millions"), [(HpsV21, 986), (HpsV1, 427), (ClipScoreHessel, 151)])
def test_published_sizes_and_names(kind: type[OpenClipScorer], millions: int) -> None:
    import open_clip

    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config(kind.architecture))
    assert sum(p.numel() for p in model.parameters()) // 10**6 == millions
    layer = model.visual.transformer.resblocks[0]
    quick = type(layer.mlp.gelu).__name__ == "QuickGELU"
    assert quick == ("quickgelu" in kind.architecture)


def test_tokenizer_of_openai(weights: Path) -> None:
    scorer = scorers.load("hpsv2.1", weights)
    assert isinstance(scorer, HpsV21)
    ids = scorer.tokenize(["A  CAT", "a cat", "x " * 40])
    assert torch.equal(ids[0], ids[1])
    assert ids.shape == (3, 12)
    assert ids[1, :4].tolist() == [49406, 320, 2368, 49407]
    assert ids[2, -1] == 49407
    assert len(scorer.tokenize(["a<|endoftext|>"])[0].nonzero()) > 4  # spelt out, not obeyed
    with pytest.raises(ValueError, match="prompt 0 holds the special token '<end_of_text>'"):
        scorer.score_tensor(torch.rand(1, 3, 28, 28), ["a cat<end_of_text>"])


def test_file_with_state_dict_and_precision(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights / "open_clip_model.safetensors")
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "HPS_v2.1_compressed.pt")
    (tmp_path / CONFIG).write_text((weights / CONFIG).read_text())
    full, half = scorers.load("hpsv2.1", tmp_path), scorers.load("hpsv2.1", tmp_path, dtype="bfloat16")
    x = torch.rand(2, 3, 28, 40)
    found = half.score_tensor(x, ["a cat", "a dog"])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full.score_tensor(x, ["a cat", "a dog"]), rtol=0, atol=0.03)
    assert isinstance(half, HpsV21)
    assert half.scale().dtype == torch.float32


def test_bad_checkpoints(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights / "open_clip_model.safetensors")
    file = tmp_path / "a.pt"
    (tmp_path / CONFIG).write_text((weights / CONFIG).read_text())
    for bad, message in (
        ({k: v for k, v in state.items() if k != "visual.proj"}, r"1 keys missing \(visual\.proj\)"),
        ({**state, "mlp.weight": torch.ones(1)}, r"1 keys unexpected \(mlp\.weight\)"),
        ({"layers.0.weight": torch.ones(1)}, "checkpoint of another model"),
    ):
        torch.save(bad, file)
        with pytest.raises(ValueError, match=message):
            scorers.load("hpsv2", tmp_path)
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"a\.pt.*of another shape"):
        scorers.load("hpsv2", file)  # without the folder's sizes
    with pytest.raises(FileNotFoundError, match=r"'hpsv2' needs weights.*HPS_v2_compressed\.pt"):
        scorers.load("hpsv2")


def test_towers_of_other_libraries_are_refused(tmp_path: Path) -> None:
    sizes = {**TINY, "text_cfg": {"hf_model_name": "xlm-roberta-base"}}
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": sizes}))
    with pytest.raises(ValueError, match="towers of other libraries"):
        load_open_clip(tmp_path, "ViT-H-14")
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="gives no sizes"):
        load_open_clip(tmp_path, "ViT-H-14")
