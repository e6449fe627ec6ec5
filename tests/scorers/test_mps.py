"""MPS against the published code, and what the published code does not promise: conditions and batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

import scorers
from scorers.clip_hf import clip_config, openai_tokenizer, restore_positions
from scorers.loading import build
from scorers.mps import OVERALL, Mps, MpsModel, MpsOptions, word_mask
from tests.scorers.conftest import GOLDEN, tiny_clip, tiny_tokenizer
from tests.scorers.contract import PROMPTS, check_contract
from tests.scorers.test_losses import golden

TASTES = {"overall": "light, things", "red": "red dog", "trees": "trees and leaves"}


def golden_scorer(threshold: float = 0.3) -> Mps:
    sizes = json.loads((GOLDEN / "mps_tiny_config.json").read_text())
    clip, cross = sizes["clip_config"], sizes["cross"]
    config = CLIPConfig(
        text_config=clip["text"], vision_config=clip["vision"], projection_dim=clip["projection_dim"]
    )
    options = MpsOptions(
        threshold=threshold, layers=cross["layer_num"], heads=cross["heads"], dim_head=cross["dim_head"]
    )
    file = GOLDEN / "mps_tiny_state_dict.safetensors"
    towers = build(lambda: MpsModel(CLIPModel(config), options), load_file(file), where=file)
    restore_positions(towers.model)
    return Mps(towers, tiny_tokenizer(), options)


def tiny_mps(read_condition: bool = False) -> Mps:
    clip = tiny_clip()
    options = MpsOptions(
        conditions=TASTES, threshold=0.95, read_condition=read_condition, layers=2, heads=2, dim_head=8
    )
    return Mps(MpsModel(clip, options), tiny_tokenizer(), options)


def close(found: object, expected: object, scale: float = 1.0) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_features_mask_and_cross_model_of_the_published_code() -> None:
    data, scorer = golden("mps_tiny"), golden_scorer()
    text, condition = scorer.text_tokens(data["text"]), scorer.text_tokens(data["condition"])[:, :-1]
    close(text[:, :-1], data["text_tokens_feat"])
    close(text[:, -1], data["text_eos_feat"])
    close(condition, data["cond_feat"])
    close(scorer.image_tokens(data["image"]), data["image_tokens_feat"])
    for threshold, key in ((0.3, "mask_thr0.3"), (0.01, "mask_thr0.01")):
        assert torch.equal(word_mask(text[:, :-1], condition, threshold), data[key])
    mask = data["cross_mask"]
    assert bool((mask == mask[:, :1]).all())  # one mask for all tokens of a picture
    close(scorer.towers.cross_model(data["cross_q"], data["cross_ctx"], mask[:, 0]), data["cross_out"])


@pytest.mark.parametrize(("threshold", "key"), [(0.3, "score_eval_thr0.3"), (0.01, "score_fwd_thr0.01_b1")])
def test_scores_of_the_published_code(threshold: float, key: str) -> None:
    data, scorer = golden("mps_tiny"), golden_scorer(threshold)
    text, condition = scorer.text_tokens(data["text"]), scorer.text_tokens(data["condition"])
    score = scorer.compare_tokens(scorer.image_tokens(data["image"]), text, condition)
    close(score, data[key], scale=float(scorer.scale()))  # 1e-5 of the cosine


def test_pixel_gradient_of_the_published_code() -> None:
    data, scorer = golden("mps_tiny"), golden_scorer()
    pixels = data["image"].clone().requires_grad_()
    text, condition = scorer.text_tokens(data["text"]), scorer.text_tokens(data["condition"])
    scorer.compare_tokens(scorer.image_tokens(pixels), text, condition).sum().backward()
    torch.testing.assert_close(pixels.grad, data["grad_image"], rtol=1e-4, atol=1e-5)


def test_contract() -> None:
    check_contract(tiny_mps())


def test_conditions_are_dimensions() -> None:
    scorer, x = tiny_mps(), torch.rand(3, 3, 32, 32)
    out = scorer(x, PROMPTS)
    assert list(out.dims) == ["overall", "red", "trees"]
    torch.testing.assert_close(out.score, out.dims["overall"])
    mixed = scorer.score_conditions(x, PROMPTS, ["red", "overall", "trees"])
    expected = torch.stack([out.dims["red"][0], out.dims["overall"][1], out.dims["trees"][2]])
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-4)
    assert float((out.dims["red"] - out.dims["trees"]).abs().max()) > 0
    with pytest.raises(ValueError, match="no condition 'blue'; it has overall, red, trees"):
        scorer.score_conditions(x, PROMPTS, ["blue"] * 3)


def test_a_condition_that_is_read_matters_where_it_hides_nothing() -> None:
    x = torch.rand(3, 3, 32, 32)
    for reads in (False, True):
        scorer = tiny_mps(reads)
        object.__setattr__(scorer.options, "threshold", 0.0)
        dims = scorer.score_dims(x, ["a"] * 3)
        assert bool((dims["red"] != dims["trees"]).all()) == reads
    check_contract(scorer)


def test_a_prompt_is_measured_by_its_own_words() -> None:
    text = torch.tensor([[[1.0], [0.5], [0.2]], [[0.1], [0.05], [0.02]]])
    mask = word_mask(text, torch.ones(2, 4, 1), 0.3)
    assert torch.equal(mask[0], mask[1])
    assert mask[0].tolist() == [0, 0, -torch.inf]


def test_published_condition_and_sizes() -> None:
    import hashlib

    assert hashlib.sha256(OVERALL.encode()).hexdigest().startswith("b9d60155529e0ad3")
    with torch.device("meta"):
        towers = MpsModel(CLIPModel(clip_config(Path("MPS.safetensors"))), MpsOptions())
    shapes = {k: tuple(v.shape) for k, v in towers.state_dict().items()}
    assert shapes["cross_model.layers.3.0.fn.to_kv.weight"] == (128, 1024)
    assert shapes["cross_model.layers.3.0.fn.ff.0.weight"] == (8192, 1024)
    assert shapes["cross_model.layers.3.1.fn.fused_attn_ff_proj.weight"] == (9344, 1024)
    assert shapes["cross_model.layers.3.1.fn.rotary_emb.inv_freq"] == (32,)
    assert sum(p.numel() for p in towers.model.parameters()) // 10**6 == 986
    with pytest.raises(ValueError, match="each of some words"):
        MpsOptions(conditions={"a": " "})
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        MpsOptions(threshold=1)


def test_tokenizer_without_a_folder_pads_with_its_end_token() -> None:
    found = openai_tokenizer()(["a cat"], padding="max_length", max_length=6)["input_ids"]
    assert found[0] == [49406, 320, 2368, 49407, 49407, 49407]


def test_save_load_and_bad_weights(tmp_path: Path) -> None:
    scorer, x = tiny_mps(), torch.rand(3, 3, 32, 32)
    scorer.save(tmp_path)
    again = scorers.load("mps", tmp_path)
    assert isinstance(again, Mps)
    assert again.dims == scorer.dims
    assert torch.equal(again.score_tensor(x, PROMPTS), scorer.score_tensor(x, PROMPTS))
    half = scorers.load("mps", tmp_path, dtype="bfloat16")
    assert isinstance(half, Mps)
    kinds = {k.rpartition(".")[2]: v.dtype for k, v in half.towers.state_dict().items() if "cross" in k}
    assert kinds == {"weight": torch.bfloat16, "bias": torch.bfloat16, "inv_freq": torch.float32}
    torch.testing.assert_close(
        half.score_tensor(x, PROMPTS), scorer.score_tensor(x, PROMPTS), rtol=0, atol=0.5
    )
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if "cross_model" not in k}, file)
    with pytest.raises(ValueError, match=r"keys missing \(cross_model\.layers\.0\.0\.fn\.ff\.0\.weight"):
        scorers.load("mps", tmp_path)
    (tmp_path / "mps.json").write_text('{"tastes": 3}')
    with pytest.raises(ValueError, match=r"mps\.json holds no options of MPS"):
        scorers.load("mps", tmp_path)


def test_gradients_reach_the_cross_model_in_training() -> None:
    scorer = tiny_mps()
    scorer.requires_grad_(True)
    scorer.score_conditions(torch.rand(2, 3, 32, 32), ["a", "b"], ["red", "trees"]).sum().backward()
    without = [k for k, p in scorer.towers.named_parameters() if p.grad is None]
    assert without == ["model.vision_model.post_layernorm.weight", "model.vision_model.post_layernorm.bias"]


def test_a_silenced_cross_model_leaves_pictures_as_they_are_and_can_learn() -> None:
    model = tiny_mps().towers.cross_model
    mask = torch.zeros(2, 7)
    width = model.layers[0][0].fn.to_q.in_features  # type: ignore[index]
    query, context = torch.randn(2, 5, width), torch.randn(2, 7, width)
    assert not torch.equal(model(query, context, mask), query)
    model.silence()
    assert torch.equal(model(query, context, mask), query)
    model.requires_grad_(True)
    model(query, context, mask).square().sum().backward()
    assert float(model.layers[0][0].fn.to_out.weight.grad.abs().sum()) > 0  # type: ignore[index,union-attr]
