"""ImageReward: published numbers and gradients, key names, batches, loading, bad input."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer

import scorers
from scorers.blip import NAMES, BlipRegressor, BlipSizes, load_blip, ours, published
from scorers.imagereward import PUBLISHED, ImageReward
from scorers.vp_score import VPScore
from tests.scorers.conftest import GOLDEN
from tests.scorers.test_losses import golden

STATE = GOLDEN / "imagereward_tiny_state_dict.safetensors"
PROMPTS = ["a cat", "a very red dog", "trees"]


def tiny_sizes() -> BlipSizes:
    given = json.loads((GOLDEN / "imagereward_tiny_config.json").read_text())
    text, vision = given["text"], given["vision"]
    return BlipSizes(
        image_size=vision["img_size"],
        patch_size=vision["patch_size"],
        vision_width=vision["embed_dim"],
        vision_layers=vision["depth"],
        vision_heads=vision["num_heads"],
        vocab_size=text["vocab_size"],
        text_width=text["hidden_size"],
        text_hidden=text["intermediate_size"],
        text_layers=text["num_hidden_layers"],
        text_heads=text["num_attention_heads"],
        positions=text["max_position_embeddings"],
        mean=PUBLISHED.mean,
        std=PUBLISHED.std,
    )


def write_folder(folder: Path) -> Path:
    """A folder like the published one, tiny."""
    folder.mkdir()
    (folder / "ImageReward.pt").symlink_to(folder / "state.pt_")
    torch.save(load_file(STATE), folder / "state.pt_")
    tiny_sizes().write(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    words += [f"##{c}" for c in string.ascii_lowercase]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("weights") / "imagereward")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ImageReward:
    loaded = scorers.load("imagereward", weights=folder)
    assert isinstance(loaded, ImageReward)
    return loaded


def test_rewards_and_gradients_of_the_published_code(scorer: ImageReward) -> None:
    data = golden("imagereward_tiny")
    assert (scorer.sizes.mean, scorer.sizes.std) == pytest.approx((float(data["mean"]), float(data["std"])))
    pixels = data["image"].clone().requires_grad_()
    tokens = scorer.blip.vision(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(tokens, data["visual_embeds"], rtol=1e-5, atol=1e-5)
    reward = scorer.reward(pixels, data["input_ids"], data["attention_mask"])
    torch.testing.assert_close(reward, data["reward"][:, 0], rtol=1e-5, atol=1e-5)
    raw = scorer.blip(pixels, data["input_ids"], data["attention_mask"])
    torch.testing.assert_close(raw, data["reward_raw"][:, 0], rtol=1e-5, atol=1e-5)
    reward.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(pixels.grad, data["grad_image"], rtol=1e-4, atol=1e-9)  # the largest is 5e-5


def test_key_names_go_there_and_back() -> None:
    for key in load_file(STATE):
        assert published(ours(key)) == key
    renamed = {ours(key) for key in load_file(STATE)}
    with torch.device("meta"):
        assert set(BlipRegressor(tiny_sizes()).state_dict()) <= renamed
    assert len(NAMES) == len({theirs for theirs, _ in NAMES}) == len({mine for _, mine in NAMES})


def test_published_sizes_make_the_published_network() -> None:
    with torch.device("meta"):
        blip = BlipRegressor(PUBLISHED)
    state = blip.state_dict()
    assert state["vision.embeddings.position_embedding"].shape == (1, 197, 1024)
    assert state["text.encoder.layer.11.crossattention.self.key.weight"].shape == (768, 1024)
    assert state["text.embeddings.word_embeddings.weight"].shape == (30524, 768)
    assert round(sum(v.numel() for v in state.values()) / 1e6) == 446


def test_batch_equals_single(scorer: ImageReward) -> None:
    x = torch.rand(3, 3, 40, 56, generator=torch.manual_seed(0))
    whole = scorer.score_tensor(x, PROMPTS)
    single = torch.cat([scorer.score_tensor(x[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-4)
    spread = scorer.blip(scorer.preprocess(x), *scorer.tokenize(PROMPTS))
    assert float(spread.std()) > 10 * 1e-6  # the tiny network tells them apart


def test_an_ascent_step_raises_the_score(scorer: ImageReward) -> None:
    x = torch.rand(2, 3, 40, 56, generator=torch.manual_seed(0), requires_grad=True)
    before = scorer.score_tensor(x, PROMPTS[:2])
    (grad,) = torch.autograd.grad(before.sum(), x)
    after = scorer.score_tensor(
        (x + 0.1 * grad / grad.abs().amax((1, 2, 3), keepdim=True)).detach(), PROMPTS[:2]
    )
    assert (after > before).all()
    assert all(not p.requires_grad for p in scorer.parameters())


def test_prompts_are_cut_and_special_tokens_refused(scorer: ImageReward) -> None:
    ids, mask = scorer.tokenize(["x" * 99, "x"])
    assert ids.shape == (2, 35)
    assert mask.sum(1).tolist() == [35, 3]
    with pytest.raises(ValueError, match=r"\[SEP\]"):
        scorer.score_tensor(torch.rand(1, 3, 32, 32), ["a [SEP] b"])


def test_save_and_load(scorer: ImageReward, tmp_path: Path) -> None:
    scorer.save(tmp_path / "saved")
    again = scorers.load("imagereward", weights=tmp_path / "saved")
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(
        again.score_tensor(x, PROMPTS), scorer.score_tensor(x, PROMPTS), rtol=0, atol=1e-6
    )
    kept = set(load_file(tmp_path / "saved" / "model.safetensors"))
    assert kept < set(load_file(STATE))
    assert not list((tmp_path / "saved").glob(".saving-*"))


def test_vp_score_is_not_standardised(scorer: ImageReward, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none are published"):
        scorers.load("vp-score")
    x = torch.rand(1, 3, 32, 32)
    vp = VPScore(scorer.blip, scorer.tokenizer, VPScore.default_sizes)
    assert (vp.default_sizes.mean, vp.default_sizes.std) == (0, 1)
    assert vp.name in scorers.names()
    scorer.save(tmp_path / "vp")
    loaded = scorers.load("vp-score", weights=tmp_path / "vp")
    torch.testing.assert_close(
        loaded.score_tensor(x, ["a"]), scorer.score_tensor(x, ["a"])
    )  # sizes.json says so


def test_half_precision_keeps_the_head(folder: Path) -> None:
    half = scorers.load("imagereward", weights=folder, dtype="bfloat16")
    assert isinstance(half, ImageReward)
    assert half.blip.mlp.layers[0].weight.dtype == torch.float32
    assert half.blip.text.embeddings.word_embeddings.weight.dtype == torch.bfloat16
    assert half.score_tensor(torch.rand(1, 3, 32, 32), ["a"]).dtype == torch.float32


def test_bad_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    sizes, state = tiny_sizes(), load_file(STATE)
    part = tmp_path / "part"
    part.mkdir()
    file = part / "model.safetensors"
    save_file({k: v for k, v in state.items() if k != "mlp.layers.7.bias"}, file)
    with pytest.raises(ValueError, match=r"missing.*mlp\.layers\.7\.bias"):
        load_blip(part, sizes)
    save_file({**state, "blip.visual_encoder.blocks.7.norm1.bias": torch.ones(48)}, file)
    with pytest.raises(ValueError, match=r"unexpected.*vision\.encoder\.layers\.7"):
        load_blip(part, sizes)
    save_file({"weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="missing"):
        load_blip(part, sizes)
    file.write_bytes(b"cut short")
    with pytest.raises(ValueError, match="damaged"):
        load_blip(part, sizes)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        scorers.load("imagereward", weights=folder / "ImageReward.pt")
    (part / "sizes.json").write_text('{"depth": 2}')
    with pytest.raises(ValueError, match="unknown sizes depth"):
        scorers.load("imagereward", weights=part)


def test_med_config_of_the_published_folder(tmp_path: Path) -> None:
    (tmp_path / "med_config.json").write_text('{"num_hidden_layers": 3, "encoder_width": 768}')
    sizes = BlipSizes.read(tmp_path, PUBLISHED)
    assert (sizes.text_layers, sizes.vision_width, sizes.std) == (3, 1024, PUBLISHED.std)
    (tmp_path / "med_config.json").write_text("[]")
    with pytest.raises(ValueError, match="must be an object"):
        BlipSizes.read(tmp_path, PUBLISHED)
    with pytest.raises(FileNotFoundError, match="needs weights"):
        scorers.load("imagereward")
    assert BertTokenizer.vocab_files_names["vocab_file"] == "vocab.txt"
