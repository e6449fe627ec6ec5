"""Guidance by a second model: the published numbers, both families, folders, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from diffalign.policy import Policy, load_policy
from diffalign.policy.export import export_policy
from diffalign.policy.guidance import (
    Branches,
    Guidance,
    attach,
    is_guidance,
    read_guidance,
    two_models,
    write_guidance,
)
from diffalign.policy.load import load_pipeline
from diffalign.policy.lora import AdapterConfig, active_names, tuner_layers
from tests.objectives.test_goldens import golden
from tests.policy.test_policy import shake
from tests.tiny import tiny_folder

PROMPTS, SEEDS = ["a red circle", "a blue square"], [5, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def loras(folder: Path) -> dict[str, tuple[str, str]]:
    """Positive and negative LoRA by family."""
    found = {}
    for family in ("sd", "sd3"):
        policy = load_policy(tiny_folder(family, folder), {"rank": 2, "alpha": 4})
        paths = []
        for name in ("positive", "negative"):
            shake(policy)
            paths.append(str(export_policy(policy, folder / f"{family}-{name}")))
        found[family] = (paths[0], paths[1])
    return found


def pictures(policy: Policy, guidance: float = 3.0) -> Tensor:
    return policy.generate(PROMPTS, SEEDS, steps=2, guidance=guidance)


class Row(nn.Module):
    """theta . x as a network of one layer, with the positive model and delta as LoRAs of rank 1."""

    def __init__(self, base: Tensor, positive: Tensor, delta: Tensor) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        self.layer = nn.Linear(5, 1, bias=False, dtype=torch.float64)
        self.layer.weight.data = base[None]
        for name, update in (("p", positive - base), ("n", delta)):
            inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=["layer"]), self, name)
            self.layer.lora_A[name].weight.data = update[None].clone()
            self.layer.lora_B[name].weight.data = torch.ones(1, 1, dtype=torch.float64)

    def forward(self, sample: Tensor, other: dict[str, Tensor]) -> tuple[Tensor]:
        return (self.layer(sample + other["zero"]),)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 2e-4)])
def test_weights_of_the_negative_model(dtype: torch.dtype, rtol: float) -> None:
    d = golden("npo_cfg_and_merge")
    row = Row(d["base"], d["pos"], d["delta"]).to(dtype)
    branches = Branches(positive=("p",), negative="n", merge=float(d["merge_weight"]))
    pipeline, units = SimpleNamespace(do_classifier_free_guidance=True), torch.eye(5, dtype=dtype)
    both = torch.cat([units, units])
    with two_models(pipeline, row, branches):
        negative, positive = row(both, {"zero": torch.zeros_like(both)})[0].chunk(2)
        pipeline.do_classifier_free_guidance = False
        alone = row(units, {"zero": torch.zeros_like(units)})[0]
    torch.testing.assert_close(negative[:, 0], d["theta_neg"].to(dtype), rtol=rtol, atol=0)
    torch.testing.assert_close(positive[:, 0], d["pos"].to(dtype), rtol=rtol, atol=0)
    assert torch.equal(alone, positive)
    assert [dict(x.scaling) for x in tuner_layers(row)] == [{"p": 1.0, "n": 1.0}], "strengths are put back"


@pytest.mark.slow
def test_guided_prediction_of_the_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    d = golden("npo_cfg_and_merge", torch.float32)
    policy = load_policy(tiny_folder("sd", folder), {"rank": 2})
    policy.set_guidance(Guidance())
    one, seen = (1, 8, 8, 8), []

    def branch(*inputs: Tensor, **named: object) -> tuple[Tensor]:
        return (d["eps_neg" if active_names(policy.denoiser) else "eps_pos"].reshape(one),)

    def step(noise: Tensor, t: Tensor, latents: Tensor, **named: object) -> tuple[Tensor]:
        seen.append(noise)
        return (latents,)

    monkeypatch.setattr(policy.denoiser, "forward", branch)
    monkeypatch.setattr(policy.pipeline.scheduler, "step", step)
    policy.generate(PROMPTS[:1], SEEDS[:1], steps=1, guidance=float(d["guidance_scale"]))
    torch.testing.assert_close(seen[0], d["eps_guided"].reshape(one), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["sd", pytest.param("sd3", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_limits_of_both_families(family: str, folder: Path, loras: dict[str, tuple[str, str]]) -> None:
    positive, negative = loras[family]
    aligned = load_policy(tiny_folder(family, folder), AdapterConfig(rank=2, init_from=positive))
    plain = pictures(aligned)
    weights = {n: p.requires_grad for n, p in aligned.denoiser.named_parameters()}
    active, identity = active_names(aligned.denoiser), aligned.present_id()
    # Without CFG only the positive model is asked.
    alone = pictures(aligned, 1.0)
    aligned.set_guidance(Guidance(negative=negative))
    guided = pictures(aligned)
    assert not torch.equal(guided, plain)
    assert torch.equal(pictures(aligned, 1.0), alone)
    assert not torch.equal(pictures_of(aligned, Guidance(negative=negative, merge=1.0)), guided)
    # With the LoRA itself as delta on the base, both branches are the aligned model: plain guidance.
    same = pictures_of(aligned, Guidance(negative=positive, merge=1.0))
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-5)
    assert active_names(aligned.denoiser) == active
    now = {n: p.requires_grad for n, p in aligned.denoiser.named_parameters()}
    assert {n: now[n] for n in weights} == weights
    assert not any(on for n, on in now.items() if n not in weights)
    assert aligned.present_id() != identity
    aligned.set_guidance(None)
    assert torch.equal(pictures(aligned), plain)
    assert aligned.present_id() == identity


def pictures_of(policy: Policy, guidance: Guidance) -> Tensor:
    policy.set_guidance(guidance)
    return pictures(policy)


def test_the_trained_lora_as_the_negative_one(folder: Path, loras: dict[str, tuple[str, str]]) -> None:
    positive, negative = loras["sd3"]
    model = tiny_folder("sd3", folder)
    training = load_policy(model, AdapterConfig(rank=2, init_from=negative, frozen=(positive,)))
    training.set_guidance(Guidance(merge=0.25))
    outside = load_policy(model, AdapterConfig(rank=2, init_from=positive))
    outside.set_guidance(Guidance(negative=negative, merge=0.25))
    torch.testing.assert_close(pictures(training), pictures(outside), rtol=1e-4, atol=1e-5)
    training.set_reference("off")
    for who in (training.base, training.reference):
        with who():
            assert training.guidance is None, "base and reference are guided as usual"
    assert training.guidance is not None
    whole = load_policy(model)
    with pytest.raises(ValueError, match=r"guidance\.negative is self"):
        whole.set_guidance(Guidance())
    assert [n for n in whole.trainable() if "lora" in n] == []


@pytest.mark.parametrize("family", [pytest.param("sd", marks=pytest.mark.slow), "sd3"])
def test_saved_and_reloaded(
    family: str, folder: Path, loras: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    positive, negative = loras[family]
    model = tiny_folder(family, folder)
    policy = load_policy(model, AdapterConfig(rank=2, init_from=positive))
    expected = pictures_of(policy, Guidance(negative=negative, merge=0.5))
    saved = write_guidance(tmp_path / "both", Guidance(negative=negative, positive=(positive,), merge=0.5))
    moved = saved.rename(tmp_path / "moved")
    assert is_guidance(moved)
    assert not is_guidance(positive)
    again = load_policy(model)
    again.set_guidance(read_guidance(moved))
    torch.testing.assert_close(pictures(again), expected, rtol=1e-4, atol=1e-5)
    pipeline = attach(load_pipeline(model), moved)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    options = {"num_inference_steps": 2, "guidance_scale": 3.0, "generator": generators, "height": 64}
    options |= again.family.generate_options(pipeline, 32)
    latents = pipeline(PROMPTS, width=64, output_type="latent", **options).images
    shown = pipeline.image_processor.postprocess(again.decode(latents), output_type="pt")
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-5)


def test_what_is_wrong_is_named(loras: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"guidance\.merge is 1\.5"):
        Guidance(merge=1.5)
    with pytest.raises(FileNotFoundError, match=r"a folder with guidance\.json"):
        read_guidance(tmp_path)
    with pytest.raises(ValueError, match="export it"):
        write_guidance(tmp_path / "x", Guidance())
    with pytest.raises(FileNotFoundError, match="no LoRA"):
        write_guidance(tmp_path / "x", Guidance(negative=str(tmp_path / "nowhere")))
    assert not list(tmp_path.iterdir())
    saved = write_guidance(tmp_path / "x", Guidance(negative=loras["sd"][1]))
    content = json.loads((saved / "guidance.json").read_text())
    (saved / "guidance.json").write_text(json.dumps(content | {"negative": "../y"}))
    with pytest.raises(ValueError, match="outside of its folder"):
        read_guidance(saved)
    (saved / "guidance.json").write_text(json.dumps(content | {"format": 9}))
    with pytest.raises(ValueError, match="of format 9"):
        read_guidance(saved)
