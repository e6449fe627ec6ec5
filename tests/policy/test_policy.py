"""Policies of every family at 1 MB: predictions, references, requires_grad, encoders, generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from diffalign.diffusion.spaces import native_error
from diffalign.policy import Policy, load_policy
from diffalign.policy.export import export_policy
from diffalign.policy.lora import ADAPTER, AdapterConfig, adapter_parameters
from diffalign.train.again import generate_to
from diffalign.world.models import clip_tokenizer
from tests.tiny import tiny_folder, tiny_pipeline

FAMILIES = ["sd", "sd-v", "sdxl", "sd3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def inputs(
    policy: Policy, n: int = 4
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    cond = policy.collate_prompts(policy.encode_prompts(["a red circle"] * n))
    t = torch.full((n,), 0.5) if policy.process.is_flow else torch.full((n,), 500)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 8, 8, 8, generator=generator), t, cond, torch.tensor([[64, 64, 0, 0, 64, 64]] * n)


def shake(policy: Policy) -> None:
    """Make the LoRA do something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_lora_equals_the_reference_exactly(family: str, folder: Path) -> None:
    policy = load_policy(tiny_folder(family, folder), {"rank": 2, "alpha": 4})
    assert policy.set_reference() == "off"
    x, t, cond, sizes = inputs(policy)
    own = policy.predict(x, t, cond, sizes)
    with policy.reference():
        reference = policy.predict(x, t, cond, sizes)
    assert torch.equal(own, reference)
    assert own.requires_grad
    assert not reference.requires_grad
    shake(policy)
    changed = policy.predict(x, t, cond, sizes)
    with policy.reference():
        again = policy.predict(x, t, cond, sizes)
    assert torch.equal(again, reference), "the reference must not move with the policy"
    assert native_error(changed, own).max() > 0


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_full_training_compares_with_a_frozen_copy(family: str, folder: Path) -> None:
    policy = load_policy(tiny_folder(family, folder))
    with pytest.raises(RuntimeError, match="set_reference"), policy.reference():
        pass
    with pytest.raises(ValueError, match="use 'start'"):
        policy.set_reference("off")
    policy.set_reference()
    x, t, cond, sizes = inputs(policy)
    with policy.reference():
        before = policy.predict(x, t, cond, sizes)
    shake(policy)
    with policy.reference():
        assert torch.equal(policy.predict(x, t, cond, sizes), before)
    assert not torch.equal(policy.predict(x, t, cond, sizes), before)


def test_requires_grad_survives_the_reference_pass(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd", folder), {"rank": 2})
    policy.set_reference("start")
    before = {n: p.requires_grad for n, p in policy.denoiser.named_parameters()}
    with policy.reference():
        inside = {n: p.requires_grad for n, p in policy.denoiser.named_parameters()}
    after = {n: p.requires_grad for n, p in policy.denoiser.named_parameters()}
    assert before == inside == after
    assert all(".default." in n for n, on in before.items() if on)


@pytest.mark.slow
def test_frozen_first_stage_stays_bit_equal_and_belongs_to_the_reference(
    folder: Path, tmp_path: Path
) -> None:
    first = load_policy(tiny_folder("sd", folder), {"rank": 2})
    shake(first)
    export_policy(first, tmp_path / "first")
    policy = load_policy(tiny_folder("sd", folder), AdapterConfig(rank=3, frozen=(str(tmp_path / "first"),)))
    policy.set_reference()
    frozen = {n: p.clone() for n, p in adapter_parameters(policy.denoiser, "frozen0").items()}
    assert frozen
    x, t, cond, sizes = inputs(policy)
    with policy.reference():
        start = policy.predict(x, t, cond, sizes)
    torch.testing.assert_close(start, first.predict(x, t, cond, sizes), rtol=1e-5, atol=1e-6)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-2)
    for _ in range(5):
        with policy.reference():
            reference = policy.predict(x, t, cond, sizes)
        (policy.predict(x, t, cond, sizes) - reference - 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    now = adapter_parameters(policy.denoiser, "frozen0")
    assert all(torch.equal(frozen[n], now[n]) for n in frozen)
    assert not any(p.requires_grad for p in now.values())


def test_start_from_an_existing_lora(folder: Path, tmp_path: Path) -> None:
    first = load_policy(tiny_folder("sd", folder), {"rank": 2, "alpha": 8})
    shake(first)
    export_policy(first, tmp_path / "first")
    second = load_policy(
        tiny_folder("sd", folder), {"rank": 2, "alpha": 8, "init_from": str(tmp_path / "first")}
    )
    assert second.set_reference() == "start"
    x, t, cond, sizes = inputs(second)
    own = second.predict(x, t, cond, sizes)
    torch.testing.assert_close(own, first.predict(x, t, cond, sizes))
    with second.reference():
        assert torch.equal(second.predict(x, t, cond, sizes), own)
    assert {n.split(".")[-2] for n in second.trainable()} == {ADAPTER}
    with pytest.raises(ValueError, match="does not fit"):
        load_policy(tiny_folder("sd", folder), {"rank": 5, "init_from": str(tmp_path / "first")})
    with pytest.raises(FileNotFoundError, match="no LoRA"):
        load_policy(tiny_folder("sd", folder), {"rank": 2, "init_from": str(tmp_path / "nowhere")})


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_generation_depends_on_its_own_seed_only(family: str, folder: Path) -> None:
    policy = load_policy(tiny_folder(family, folder), {"rank": 2})
    prompts = ["a red circle", "a blue square"]
    both = policy.generate(prompts, [5, 6], steps=2)
    alone = policy.generate(prompts[1:], [6], steps=2)
    assert both.shape == (2, 3, 64, 64)
    torch.testing.assert_close(both[1:], alone, rtol=1e-3, atol=1e-3)
    shake(policy)
    with policy.base():
        torch.testing.assert_close(policy.generate(prompts, [5, 6], steps=2), both)


def test_base_id_ignores_the_adapter(folder: Path) -> None:
    plain, adapted = (
        load_policy(tiny_folder("sd", folder)),
        load_policy(tiny_folder("sd", folder), {"rank": 2}),
    )
    assert plain.base_id() == adapted.base_id()
    other = load_policy(tiny_folder("sd3", folder))
    assert other.base_id() != plain.base_id()
    assert other.encoder_id("text") != plain.encoder_id("text")


def test_latents_and_decoder_are_differentiable(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd", folder))
    mean, logvar = policy.encode_images(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert mean.shape == logvar.shape == (2, 8, 8, 8)
    latents = policy.scale_latents(mean).requires_grad_(True)
    policy.decode(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.abs().sum() > 0


def test_wrong_paths_and_families_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no diffusers pipeline at .*model_index.json"):
        load_policy(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="allow_download"):
        load_policy("some/hub-id")
    with pytest.raises(ValueError, match="no module of UNet2DConditionModel"):
        load_policy(tiny_folder("sd", folder), {"rank": 2, "targets": ("nope",)})
    pipeline = tiny_pipeline("sd")
    pipeline.scheduler.register_to_config(prediction_type="weird")
    from diffalign.policy.unet import StableDiffusion

    with pytest.raises(ValueError, match="prediction_type is 'weird'"):
        Policy(pipeline, StableDiffusion(), None, 32)


def lora8(folder: Path, where: Path) -> str:
    first = load_policy(tiny_folder("sd", folder), {"rank": 2, "alpha": 8})
    shake(first)
    export_policy(first, where)
    return str(where)


@pytest.mark.slow
def test_a_first_stage_belongs_to_the_identity_of_the_base(folder: Path, tmp_path: Path) -> None:
    model, stage = tiny_folder("sd", folder), lora8(folder, tmp_path / "first")
    plain = load_policy(model, {"rank": 2})
    staged = load_policy(model, AdapterConfig(rank=2, frozen=(stage,)))
    assert staged.base_id() != plain.base_id()
    again = load_policy(model, AdapterConfig(rank=3, frozen=(stage,)))
    assert again.base_id() == staged.base_id(), "the LoRA that is trained does not count"
    assert staged.encoder_id("vae") == plain.encoder_id("vae")


def test_lora_in_a_text_encoder_belongs_to_its_identity(folder: Path) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    policy, plain = (load_policy(tiny_folder("sd", folder), {"rank": 2}) for _ in range(2))
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    inject_adapter_in_model(lora, policy.pipeline.text_encoder, "frozen0")
    policy.frozen_adapters.append("frozen0")
    assert policy.encoder_id("text") != plain.encoder_id("text")


def test_a_base_kept_without_a_reference(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd", folder))
    policy.set_reference("none")
    with pytest.raises(RuntimeError, match="keep_base"), policy.base():
        pass
    policy.keep_base()
    before = policy.generate(["a red circle"], [5], steps=2)
    identity = load_policy(tiny_folder("sd", folder)).base_id()
    shake(policy)
    with policy.base():
        assert torch.equal(policy.generate(["a red circle"], [5], steps=2), before)
    assert policy.base_id() == identity
    with pytest.raises(RuntimeError, match="no reference"), policy.reference():
        pass


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.slow
def test_half_precision_is_close_to_fp32(family: str, dtype: torch.dtype, folder: Path) -> None:
    model, prompts = tiny_folder(family, folder), ["a red circle"]
    exact = load_policy(model, {"rank": 2}).generate(prompts, [5], steps=2)
    for policy in (
        load_policy(model, {"rank": 2}).to(dtype=dtype),
        load_policy(model, {"rank": 2}, dtype=dtype),
    ):
        pictures = policy.generate(prompts, [5], steps=2)
        assert pictures.dtype == torch.float32
        assert (pictures - exact).abs().mean() < 0.01
        x, t, cond, sizes = inputs(policy)
        assert policy.predict(x, t, cond, sizes).dtype == torch.float32


def test_policy_and_base_of_a_full_training_compute_alike(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd", folder)).to(dtype=torch.bfloat16)
    assert {p.dtype for p in policy.trainable().values()} == {torch.float32}
    policy.set_reference()
    own = policy.generate(["a red circle"], [5], steps=2)
    with policy.base():
        assert torch.equal(policy.generate(["a red circle"], [5], steps=2), own)
    x, t, cond, sizes = inputs(policy)
    with policy.reference():
        reference = policy.predict(x, t, cond, sizes)
    assert torch.equal(policy.predict(x, t, cond, sizes), reference)
    policy.dtype = torch.float32
    assert not torch.equal(policy.predict(x, t, cond, sizes), reference), "half precision was not used"


def test_a_cast_does_not_round_the_lora(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd", folder), {"rank": 2})
    shake(policy)
    policy.set_reference("start")
    before = {n: p.clone() for n, p in policy.denoiser.named_parameters() if "lora_" in n}
    policy.to(dtype=torch.bfloat16)
    now = dict(policy.denoiser.named_parameters())
    assert all(torch.equal(now[n], value) for n, value in before.items())
    assert {p.dtype for n, p in now.items() if "lora_" not in n} == {torch.bfloat16}


def test_the_noise_process_moves_with_the_policy(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd", folder), {"rank": 2}).to("meta")
    assert policy.process.alphas_cumprod is not None
    assert policy.process.alphas_cumprod.device.type == "meta"


def test_the_safety_checker_never_blackens_pictures(folder: Path) -> None:
    from transformers import CLIPImageProcessor

    class Checker(nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, images: torch.Tensor, clip_input: torch.Tensor) -> tuple[torch.Tensor, list[bool]]:
            return torch.zeros_like(images), [True] * len(images)

    policy = load_policy(tiny_folder("sd", folder))
    plain = policy.generate(["a red circle"], [5], steps=2)
    policy.pipeline.register_modules(safety_checker=Checker(), feature_extractor=CLIPImageProcessor())
    assert torch.equal(policy.generate(["a red circle"], [5], steps=2), plain)


def test_generation_that_fails_leaves_the_policy_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_policy(tiny_folder("sd", folder)).to(dtype=torch.bfloat16)
    policy.denoiser.train()
    monkeypatch.setattr(policy.pipeline.scheduler, "step", None)
    with pytest.raises(TypeError):
        policy.generate(["a red circle"], [5], steps=2)
    assert policy.denoiser.training
    assert "forward" not in vars(policy.denoiser)


@pytest.mark.parametrize("shifted", [False, True])
def test_scaling_latents_is_undone_by_decoding(shifted: bool, folder: Path) -> None:
    policy = load_policy(tiny_folder("sdxl", folder))
    if shifted:
        policy.pipeline.vae.register_to_config(latents_mean=[0.1] * 8, latents_std=[2.0] * 8)
    latents = torch.randn(2, 8, 8, 8)
    expected = policy.pipeline.vae.decode(latents).sample
    torch.testing.assert_close(policy.decode(policy.scale_latents(latents)), expected, rtol=1e-4, atol=1e-5)


def test_a_dropped_prompt_is_the_unconditional_of_sampling(folder: Path) -> None:
    policy = load_policy(tiny_folder("sdxl", folder))
    _, negative, _, pooled = policy.pipeline.encode_prompt("a red circle", do_classifier_free_guidance=True)
    empty, full = policy.encode_prompts(["", "a red circle"])
    assert torch.equal(empty["text"], negative[0])
    assert torch.equal(empty["pooled"], pooled[0])
    assert full["text"].abs().sum() > 0
    other = load_policy(tiny_folder("sdxl", folder))
    other.pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert other.encode_prompts([""])[0]["text"].abs().sum() > 0
    assert other.encoder_id("text") != policy.encoder_id("text"), "or embeddings of the other kind are found"


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_another_vocabulary_is_another_text_encoder(family: str, folder: Path) -> None:
    policy, other = (load_policy(tiny_folder(family, folder)) for _ in range(2))
    other.pipeline.tokenizer = clip_tokenizer(("circle", "red", "a"))
    before = policy.encoder_id("text")
    assert other.encoder_id("text") != before, "equal weights under other token ids give other embeddings"
    again = load_policy(tiny_folder(family, folder))
    again.encode_prompts(["a red circle"])
    assert again.encoder_id("text") == before, "what a call leaves in the tokenizer does not count"


def test_a_lora_that_is_not_here_is_never_looked_for_elsewhere(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no LoRA at nowhere/typo"):
        load_policy(tiny_folder("sd", folder), AdapterConfig(frozen=("nowhere/typo",)))
    with pytest.raises(FileNotFoundError, match="no LoRA at nowhere/typo"):
        generate_to(tmp_path, tiny_folder("sd", folder), ["a red circle"], "nowhere/typo", 1, 2, 4.0)
