"""Latent reward models: published features and score, the denoiser's own features, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scorers.latent import LatentScorer, load_latent
from scorers.lrm import Lrm, LrmOptions
from scorers.lrm_head import CosineHead, DinaHead
from scorers.lrm_text import PromptEncoders
from scorers.lrm_trunk import MMDiTTrunk, UNetTrunk, stage_taps
from tests.tiny import tiny_pipeline

GOLDEN = Path(__file__).parents[1] / "golden" / "online" / "latent_reward.npz"
PROMPTS = ["a red circle", "a small blue square on a gray background", "a red circle"]
TIMES = torch.tensor([1, 501, 951])
FAMILIES = ("sd", "sdxl", "sd3")


@pytest.fixture(scope="module")
def pipelines() -> dict[str, Any]:
    made = {family: tiny_pipeline(family) for family in FAMILIES}
    made["sd3"].text_encoder_3.eval()  # T5 is built with dropout on
    return made


@pytest.fixture(scope="module")
def models(pipelines: dict[str, Any]) -> dict[str, Lrm]:
    made = {family: Lrm.of_pipeline(pipelines[family], vae_id="vae-1") for family in FAMILIES}
    dina = LrmOptions(head="dina", taps=(1, 2))
    return made | {"dina": Lrm.of_pipeline(pipelines["sd3"], vae_id="vae-1", options=dina)}


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(3, 8, 8, 8, generator=torch.manual_seed(0))


def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        return {k: torch.as_tensor(file[k]) for k in file.files}


# ---------------------------------------------------------------------- published numbers


@pytest.mark.parametrize(("guidance", "multi_scale"), [(7.5, False), (7.5, True), (1, False)])
def test_published_features(guidance: float, multi_scale: bool) -> None:
    d = golden()
    maps = [d[k].flatten(2).transpose(1, 2) for k in ("res_2", "res_5", "res_8", "res_11", "mid")]
    head = CosineHead([4, 6, 8, 8, 8], 7, 7, guidance, multi_scale)
    head.visual.weight.data = d["proj_weight"]
    blank = [m[3:] for m in maps] if head.needs_blank else None
    found = head.features([m[:3] for m in maps], blank)
    torch.testing.assert_close(found, d[f"vfe_feat_gs{guidance}_ms{int(multi_scale)}"], rtol=1e-4, atol=1e-5)
    if not multi_scale and guidance == 7.5:
        score = head([m[:3] for m in maps], blank, torch.zeros(3), d["score_text"])
        torch.testing.assert_close(score, d["score"], rtol=1e-4, atol=1e-5)


def test_published_taps() -> None:
    from diffusers import UNet2DConditionModel

    cross, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    with torch.device("meta"):
        sd15 = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        sdxl = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=(plain, cross, cross),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2048,
        )
    assert stage_taps(sd15) == (2, 5, 8, 11)
    assert stage_taps(sdxl) == (2, 5, 8)
    assert UNetTrunk(sd15).widths == (320, 640, 1280, 1280, 1280)
    assert UNetTrunk(sdxl).widths == (320, 640, 1280, 1280)


def test_a_transformer_is_read_at_three_quarters_of_its_depth() -> None:
    from diffusers import SD3Transformer2DModel

    with torch.device("meta"):
        net = SD3Transformer2DModel(num_layers=4, num_attention_heads=2, attention_head_dim=8)
        assert MMDiTTrunk(net).taps == (3,)  # 18 of the 24 blocks of Stable Diffusion 3
    assert len(net.transformer_blocks) == 3


# ---------------------------------------------------------------------- the denoiser's own features


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_as_the_pipeline_reads_them(
    family: str, pipelines: dict[str, Any], models: dict[str, Lrm]
) -> None:
    wanted = _pipeline_texts(family, pipelines[family])
    found = models[family].texts(PROMPTS)
    torch.testing.assert_close(found.tokens, wanted[0])
    if family != "sd":
        torch.testing.assert_close(found.pooled, wanted[1])


def _pipeline_texts(family: str, pipeline: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        if family == "sd":
            return pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0], torch.empty(0)
        if family == "sdxl":
            tokens, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        else:
            tokens, _, pooled, _ = pipeline.encode_prompt(
                PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=77
            )
    return tokens, pooled


def test_the_unpadded_prompt_is_pooled_at_its_end_token(
    pipelines: dict[str, Any], models: dict[str, Lrm]
) -> None:
    pipeline = pipelines["sd"]
    ids = pipeline.tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    with torch.no_grad():
        wanted = pipeline.text_encoder(ids).last_hidden_state[0, -1]
    torch.testing.assert_close(models["sd"].texts(PROMPTS).pooled[1], wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_sees_what_the_denoiser_sees(
    family: str, pipelines: dict[str, Any], models: dict[str, Lrm], latents: Tensor
) -> None:
    lrm, pipeline = models[family], pipelines[family]
    net = pipeline.transformer if family == "sd3" else pipeline.unet
    texts = lrm.texts(PROMPTS)
    found = lrm.trunk.maps(latents, TIMES, texts)[-1]
    seen: list[Any] = []
    place = net.transformer_blocks[lrm.trunk.taps[-1] - 1] if family == "sd3" else net.mid_block
    hook = place.register_forward_hook(lambda module, given, out: seen.append(out))
    with torch.no_grad():
        if family == "sd3":
            net(latents, texts.tokens, texts.pooled, TIMES)
            wanted = seen[0][1]
        else:
            sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]] * 3)
            added = {"text_embeds": texts.pooled, "time_ids": sizes}
            net(latents, TIMES, texts.tokens, added_cond_kwargs=added)
            wanted = seen[0].flatten(2).transpose(1, 2)
    hook.remove()
    torch.testing.assert_close(found, wanted)


def test_a_tap_is_the_residual_that_the_up_path_would_get(
    pipelines: dict[str, Any], models: dict[str, Lrm], latents: Tensor
) -> None:
    texts = models["sd"].texts(PROMPTS)
    seen: list[Any] = []
    hook = (
        pipelines["sd"].unet.down_blocks[0].register_forward_hook(lambda m, given, out: seen.append(out[1]))
    )
    with torch.no_grad():
        pipelines["sd"].unet(latents, TIMES, texts.tokens)
    hook.remove()
    found = models["sd"].trunk.maps(latents, TIMES, texts)[0]
    assert models["sd"].trunk.taps == (1, 3)
    torch.testing.assert_close(found, seen[0][0].flatten(2).transpose(1, 2))


# ---------------------------------------------------------------------- scores


@pytest.mark.parametrize("name", [*FAMILIES, "dina"])
def test_batch_as_single_and_gradient_in_the_latents(
    name: str, models: dict[str, Lrm], latents: Tensor
) -> None:
    lrm = models[name]
    assert isinstance(lrm, LatentScorer)
    x = latents.clone().requires_grad_()
    whole = lrm.score_latents(x, TIMES, PROMPTS)
    assert whole.shape == (3,)
    assert whole.dtype == torch.float32
    one = [lrm.score_latents(latents[i : i + 1], TIMES[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(one), whole.detach(), rtol=1e-4, atol=2e-5)
    (grad,) = torch.autograd.grad(whole.sum(), x)
    assert bool((grad.abs().sum((1, 2, 3)) > 0).all())
    step = 1e-2 * grad / grad.abs().amax((1, 2, 3), keepdim=True)
    assert bool((lrm.score_latents(latents + step, TIMES, PROMPTS) > whole).all())
    assert not any(p.requires_grad for p in lrm.parameters())
    assert not lrm.training


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_prompt_and_noise_level_matter(name: str, models: dict[str, Lrm], latents: Tensor) -> None:
    score = models[name].score_latents
    same = latents[:1].repeat(3, 1, 1, 1)
    prompts, times = score(same, TIMES[:1].repeat(3), PROMPTS), score(same, TIMES, PROMPTS[:1] * 3)
    assert prompts[0] == pytest.approx(float(prompts[2]), abs=1e-5)
    assert abs(float(prompts[0] - prompts[1])) > 1e-3
    assert len({round(float(t), 3) for t in times}) == 3


def test_a_guidance_of_one_is_no_guidance(pipelines: dict[str, Any], latents: Tensor) -> None:
    plain = Lrm.of_pipeline(pipelines["sd"], vae_id="v", options=LrmOptions(guidance=1))
    almost = Lrm.of_pipeline(pipelines["sd"], vae_id="v", options=LrmOptions(guidance=1 + 1e-7))
    assert not plain.head.needs_blank
    assert almost.head.needs_blank
    torch.testing.assert_close(
        *(m.score_latents(latents, TIMES, PROMPTS) for m in (plain, almost)), rtol=1e-4, atol=1e-4
    )


def test_dina_film_starts_as_the_identity_and_then_knows_the_time() -> None:
    head = DinaHead([6], 5, 8, heads=2)
    maps, text = [torch.randn(2, 4, 6)], torch.randn(1, 5).repeat(2, 1)
    times = torch.tensor([1.0, 900.0])
    same = [maps[0][:1].repeat(2, 1, 1)]
    start = head(same, None, times, text)
    assert start[0] == start[1]
    torch.nn.init.normal_(head.film[-1].weight)
    after = head(same, None, times, text).detach()
    assert abs(float(after[0] - after[1])) > 1e-4


# ---------------------------------------------------------------------- made from a policy


def test_nothing_is_shared_with_the_pipeline(pipelines: dict[str, Any], latents: Tensor) -> None:
    pipeline = pipelines["sd"]
    lrm = Lrm.of_pipeline(pipeline, vae_id="v")
    kept = {k: v.clone() for k, v in pipeline.unet.state_dict().items()}
    for parameter in lrm.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(v, kept[k]) for k, v in pipeline.unet.state_dict().items())
    assert len(pipeline.unet.up_blocks) == 2
    again = Lrm.of_pipeline(pipeline, vae_id="v", seed=1)
    assert not torch.equal(again.head.visual.weight, Lrm.of_pipeline(pipeline, vae_id="v").head.visual.weight)


def test_lora_on_the_denoiser_is_left_out(pipelines: dict[str, Any], latents: Tensor) -> None:
    from peft import LoraConfig

    pipeline = tiny_pipeline("sd")
    plain = Lrm.of_pipeline(pipeline, vae_id="v")
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    found = Lrm.of_pipeline(pipeline, vae_id="v")
    assert torch.equal(*(m.score_latents(latents, TIMES, PROMPTS) for m in (plain, found)))


def test_a_given_text_projection(pipelines: dict[str, Any]) -> None:
    weight = torch.randn(24, 32)
    lrm = Lrm.of_pipeline(pipelines["sd"], vae_id="v", text_projection=weight)
    assert torch.equal(lrm.head.text.weight, weight)
    assert lrm.head.visual.weight.shape == (24, 16 + 32 + 32)
    with pytest.raises(ValueError, match=r"text_projection is \(24, 31\), and this head takes \(24, 32\)"):
        Lrm.of_pipeline(pipelines["sd"], vae_id="v", text_projection=weight[:, 1:])


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("name", [*FAMILIES, "dina"])
def test_saved_and_loaded_bit_equal(
    name: str, models: dict[str, Lrm], latents: Tensor, tmp_path: Path
) -> None:
    models[name].save(tmp_path)
    models[name].save(tmp_path)  # over its own kind
    found = load_latent("lrm", tmp_path)
    assert isinstance(found, Lrm)
    assert torch.equal(*(m.score_latents(latents, TIMES, PROMPTS) for m in (found, models[name])))
    assert (found.vae_id, found.process) == ("vae-1", models[name].process)
    assert found.options == models[name].options
    assert not any(p.requires_grad for p in found.parameters())
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_half_precision_keeps_the_head_in_float32(
    models: dict[str, Lrm], latents: Tensor, tmp_path: Path
) -> None:
    models["sd"].save(tmp_path, torch.bfloat16)
    found = load_latent("lrm", tmp_path, dtype=torch.bfloat16)
    assert isinstance(found, Lrm)
    assert found.trunk.net.dtype == torch.bfloat16
    assert torch.equal(found.head.visual.weight, models["sd"].head.visual.weight)
    score = found.score_latents(latents, TIMES, PROMPTS)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, models["sd"].score_latents(latents, TIMES, PROMPTS), rtol=0.1, atol=0.5)


def test_wrong_files_are_refused(models: dict[str, Lrm], tmp_path: Path) -> None:
    models["sd"].save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state, written = load_file(weights), json.loads(config.read_text())
    moved = {("head.other" if k == "head.visual.weight" else k): v for k, v in state.items()}
    save_file(moved, weights)
    with pytest.raises(ValueError, match=r"1 keys missing \(head.visual.weight\); 1 keys unexpected"):
        load_latent("lrm", tmp_path)
    save_file(state, weights)
    for change, why in (
        ({"scorer": "pickscore"}, "of pickscore, not of the scorer 'lrm'"),
        ({"denoiser": {"class": "AutoencoderKL", "config": {}}}, "no trunk is made of 'AutoencoderKL'"),
        ({"text_encoders": [{"class": "GPT2Model", "config": {}}]}, "'GPT2Model' is none of"),
        ({"options": {**written["options"], "depth": 3}}, "options must be"),
    ):
        config.write_text(json.dumps(written | change))
        with pytest.raises(ValueError, match=why):
            load_latent("lrm", tmp_path)
    config.write_text(json.dumps({k: v for k, v in written.items() if k != "vae_id"}))
    with pytest.raises(ValueError, match="lacks vae_id"):
        load_latent("lrm", tmp_path)
    config.write_text(json.dumps(written))
    (tmp_path / "tokenizer").rename(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="lacks tokenizer"):
        load_latent("lrm", tmp_path)


def test_nothing_else_is_overwritten(models: dict[str, Lrm], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="something else"):
        models["sd"].save(tmp_path)
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="no JSON"):
        models["sd"].save(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_latent("lrm", tmp_path / "..")


# ---------------------------------------------------------------------- refusals


def test_another_vae_or_process_is_refused(models: dict[str, Lrm]) -> None:
    models["sd"].check_policy("vae-1", "vp")
    models["sd3"].check_policy("vae-1", "flow")
    with pytest.raises(ValueError, match="latent reward of another VAE"):
        models["sd"].check_policy("vae-2", "vp")
    with pytest.raises(ValueError, match="knows noise of a vp process, and the policy's is flow"):
        models["sd"].check_policy("vae-1", "flow")


def test_wrong_shapes_are_refused(models: dict[str, Lrm], latents: Tensor) -> None:
    score = models["sd"].score_latents
    with pytest.raises(ValueError, match="latents have 4 channels, and this model was made for 8"):
        score(latents[:, :4], TIMES, PROMPTS)
    with pytest.raises(ValueError, match="as many timesteps"):
        score(latents, torch.tensor(1), PROMPTS)
    with pytest.raises(ValueError, match="as many prompts"):
        score(latents, TIMES, PROMPTS[:2])
    with pytest.raises(ValueError, match="special token"):
        score(latents, TIMES, ["a <|endoftext|>", *PROMPTS[1:]])


def test_wrong_parts_and_options_are_refused(pipelines: dict[str, Any]) -> None:
    pipeline = pipelines["sd"]
    with pytest.raises(ValueError, match="vae_id is empty"):
        Lrm.of_pipeline(pipeline, vae_id="")
    with pytest.raises(TypeError, match="AutoencoderKL makes no latent reward model"):
        Lrm.create(pipeline.vae, [pipeline.text_encoder], [pipeline.tokenizer], vae_id="v")
    with pytest.raises(ValueError, match="2 text encoders and 1 tokenizers for the form sd"):
        PromptEncoders([pipeline.text_encoder] * 2, [pipeline.tokenizer], "sd")
    for taps in ((9,), (3, 1), (1, 1)):
        with pytest.raises(ValueError, match=r"must rise and lie in 0 to 3"):
            Lrm.of_pipeline(pipeline, vae_id="v", options=LrmOptions(taps=taps))
    with pytest.raises(ValueError, match="head must be"):
        LrmOptions(head="linear")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="queries"):
        LrmOptions(queries=0)
