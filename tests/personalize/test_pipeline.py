"""People in plain diffusers pipelines: what acts, what must not, and that a saved adapter stays the same."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import diffalign.personalize
from diffalign.personalize import Attached, attach
from diffalign.personalize.adapter import BranchOptions, load_adapter, save_adapter
from diffalign.personalize.encoders import About
from diffalign.personalize.users import Users, UsersError
from tests.attention.test_processors import flux
from tests.personalize.helpers import (
    NAMES,
    denoiser_of,
    float_pipeline,
    kept_pipeline,
    latents,
    saved,
    trained,
)
from tests.tiny import tiny_pipeline

FAMILIES = ("sd", "sd3")
ONE_QUICK = [pytest.param("sd", marks=pytest.mark.slow), "sd3"]
Folders = dict[str, Path]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return {f: saved(f, tmp_path_factory.mktemp(f)) for f in FAMILIES}


@contextmanager
def people(family: str, folder: Path) -> Iterator[Attached]:
    """An adapter attached to the one pipeline of a family, for a while."""
    attached = attach(kept_pipeline(family), folder)
    try:
        yield attached
    finally:
        attached.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_somebody_acts_and_nobody_does_not(family: str, folders: Folders) -> None:
    pipe = kept_pipeline(family)
    base = latents(pipe)
    with people(family, folders[family]) as attached:
        assert torch.equal(latents(pipe), base)
        anna = latents(attached.use("anna").pipe)
        ben = latents(attached.use("ben").pipe)
        assert (anna - base).abs().max() > 1e-3
        assert (anna - ben).abs().max() > 1e-3
        assert torch.equal(latents(attached.use("anna", scale=0.0).pipe), base)
        assert torch.equal(latents(attached.nobody().pipe), base)
    assert torch.equal(latents(pipe), base)
    with people(family, folders[family]) as attached:
        assert torch.equal(latents(attached.use("anna").pipe), anna)


@pytest.mark.parametrize("family", ONE_QUICK)
def test_people_side_by_side_are_each_as_alone(family: str, folders: Folders) -> None:
    with people(family, folders[family]) as attached:
        alone = [latents(attached.use(name).pipe, start=i)[0] for i, name in enumerate(("anna", "ben"))]
        both = latents(attached.use(["anna", "ben"]).pipe, ["a red circle"] * 2)
        torch.testing.assert_close(both, torch.stack(alone), rtol=1e-4, atol=1e-4)
        with pytest.raises(ValueError, match="2 people for 3 pictures"):
            latents(attached.pipe, ["a red circle"] * 3)


@pytest.mark.parametrize("family", ONE_QUICK)
def test_guidance_with_two_weights(family: str, folders: Folders) -> None:
    """A user weight of the text's is the usual guidance, and of 0 the base; without guidance 1 is usual."""
    with people(family, folders[family]) as attached:
        base, usual = latents(attached.nobody().pipe), latents(attached.use("anna").pipe)
        for weight, expected in ((3.0, usual), (0.0, base)):
            found = latents(attached.use("anna", user_guidance=weight).pipe)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        half = latents(attached.use("anna", user_guidance=1.0).pipe)
        assert min((half - base).abs().max(), (half - usual).abs().max()) > 1e-3
        plain = latents(attached.use("anna").pipe, guidance=1.0)
        found = latents(attached.use("anna", user_guidance=1.0).pipe, guidance=1.0)
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_guidance_where_more_than_text_is_given(tmp_path: Path) -> None:
    with people("sdxl", saved("sdxl", tmp_path)) as attached:
        usual = latents(attached.use("anna").pipe)
        found = latents(attached.use("anna", user_guidance=3.0).pipe)
        torch.testing.assert_close(found, usual, rtol=1e-4, atol=1e-4)
        assert (usual - latents(attached.nobody().pipe)).abs().max() > 1e-3


@pytest.mark.slow
def test_mixtures_of_people(folders: Folders) -> None:
    with people("sd", folders["sd"]) as attached:
        anna = latents(attached.use("anna").pipe)
        for who in ({"anna": 1.0, "ben": 0.0}, About(rows=torch.tensor([0]))):
            torch.testing.assert_close(latents(attached.use(who).pipe), anna, rtol=1e-4, atol=1e-4)
        same = latents(attached.use({"anna": 1.0, "ben": 0.0}, level="token").pipe)
        torch.testing.assert_close(same, anna, rtol=1e-4, atol=1e-4)
        twice = latents(attached.use({"anna": 2.0}).pipe)
        torch.testing.assert_close(twice, latents(attached.use("anna", scale=2.0).pipe))


@pytest.mark.slow
def test_prototypes_and_low_rank(tmp_path: Path) -> None:
    with people("sd", saved("sd", tmp_path, rank=3, prototypes=2)) as attached:
        assert attached.users.kind == "weights"
        found = latents(attached.use("anna").pipe)
        row = attached.adapter.encoder(About(rows=torch.tensor([0])))[0]
        torch.testing.assert_close(latents(attached.use(row).pipe), found)


@pytest.mark.slow
def test_directions(tmp_path: Path, folders: Folders) -> None:
    pipe = kept_pipeline("sd")
    adapter = trained(pipe.unet, encoder="direction", scorers=("hps", "aesthetic"), hidden=8)
    pipe.unet.set_attn_processor(dict(float_pipeline("sd").unet.attn_processors))
    with people("sd", save_adapter(adapter, tmp_path)) as attached:
        one, other = (latents(attached.direct(text).pipe) for text in ("hps=1", "aesthetic=2"))
        assert (one - other).abs().max() > 1e-3
        torch.testing.assert_close(latents(attached.direct("hps=3").pipe), one)
        with pytest.raises(UsersError, match="no people are stored beside this adapter"):
            attached.use("anna")
    with (
        people("sd", folders["sd"]) as attached,
        pytest.raises(ValueError, match="knows people and no directions"),
    ):
        attached.direct("hps=1")


@pytest.mark.slow
def test_what_cannot_be_attached_or_used_is_refused(tmp_path: Path, folders: Folders) -> None:
    with people("sd", folders["sd"]) as attached:
        with pytest.raises(ValueError, match="users are attached already"):
            attach(attached.pipe, folders["sd"])
        with pytest.raises(UsersError, match=r"nobody is stored as .* which knows 2 people"):
            attached.use("dora")
        with pytest.raises(ValueError, match=r"user tokens are \(4, 9\); this adapter takes \(4, 24\)"):
            attached.use(torch.zeros(4, 9))
        with pytest.raises(ValueError, match=r"user tokens are \(3, 24\)"):
            attached.use(torch.zeros(3, 24))
        with pytest.raises(ValueError, match=r"user tokens are \(8, 24\)"):  # no mixture of two
            attached.use(torch.zeros(8, 24))
        with pytest.raises(ValueError, match="user tokens are not all finite"):
            attached.use(torch.full((4, 24), float("nan")))
        with pytest.raises(ValueError, match="user_guidance is inf; it must be a finite number"):
            attached.use("anna", user_guidance=float("inf"))
        with pytest.raises(FileExistsError, match="holds a user adapter"):
            save_adapter(attached.adapter, folders["sd"])
    with pytest.raises(ValueError, match=r"of a UNet2DConditionModel \(tiny\), and this is a SD3"):
        attach(kept_pipeline("sd3"), folders["sd"])
    with pytest.raises(FileNotFoundError, match=r"holds no user_adapter_config\.json"):
        attach(kept_pipeline("sd"), tmp_path / "nothing")
    compiled = float_pipeline("sd")
    compiled.unet = torch.compile(compiled.unet)
    with pytest.raises(ValueError, match=r"attach people first, then torch\.compile"):
        attach(compiled, folders["sd"])
    with pytest.raises(ValueError, match="neither unet nor transformer"):
        attach(object(), tmp_path)
    with pytest.raises(AttributeError, match="has no 'atach'"):
        diffalign.personalize.atach  # noqa: B018


@pytest.mark.parametrize(
    ("pipeline", "why"),
    [
        ("PixArtAlphaPipeline", "does not say whether it guides"),
        ("StableDiffusionPAGPipeline", "guides by more than text"),
        ("StableDiffusionInstructPix2PixPipeline", "guides by more than text"),
    ],
)
def test_pipelines_whose_branches_cannot_be_told_apart_are_refused(pipeline: str, why: str) -> None:
    kind = getattr(diffusers, pipeline)
    with pytest.raises(ValueError, match=f"{pipeline} {why}"):
        attach(_whole(kind, float_pipeline("sd").unet), "anywhere")


def _whole(kind: type[Any], denoiser: Any) -> Any:
    """A pipeline of this class that has a denoiser and nothing else."""
    pipe = object.__new__(kind)
    object.__setattr__(pipe, "unet", denoiser)
    return pipe


def test_the_conditional_branch_alone_is_for_the_person(folders: Folders) -> None:
    """SD3's guidance by skipped layers calls the transformer once more, without the branch without text."""
    with people("sd3", folders["sd3"]) as attached:
        attached.use(["anna", "ben"])
        attached.pipe._guidance_scale = 3.0
        x = {"hidden_states": torch.zeros(2, 8, 4, 4), "skip_layers": [0]}
        _, given = attached._given(attached.denoiser, (), x)
        assert given["joint_attention_kwargs"]["user_scale"].tolist() == [[1.0], [1.0]]
        attached.user_guidance = 1.0
        with pytest.raises(ValueError, match="skipped layers exclude each other"):
            attached._given(attached.denoiser, (), x)


@pytest.mark.slow
def test_a_compiled_denoiser_gets_its_people(folders: Folders) -> None:
    with people("sd", folders["sd"]) as attached:
        base, anna = latents(attached.nobody().pipe), latents(attached.use("anna").pipe)
    pipe = float_pipeline("sd")
    attached = attach(pipe, folders["sd"])
    pipe.unet = torch.compile(pipe.unet, backend="aot_eager")
    torch.testing.assert_close(latents(attached.use("anna").pipe), anna, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(latents(attached.nobody().pipe), base, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_flux_makes_pictures_for_somebody(tmp_path: Path) -> None:
    pipe, made_elsewhere = _flux(), _flux()
    base, adapter = _flux_latents(pipe), trained(made_elsewhere.transformer)
    save_adapter(adapter, tmp_path)
    people_of = Users(tmp_path, "tokens")
    people_of.add_all(dict(zip(NAMES, adapter.encoder.people.detach(), strict=True)))
    attached = attach(pipe, tmp_path)
    assert torch.equal(_flux_latents(pipe), base)
    anna, ben = (_flux_latents(attached.use(name).pipe) for name in NAMES)
    assert min((anna - base).abs().max(), (ben - anna).abs().max()) > 1e-3
    elsewhere = Attached(made_elsewhere, adapter, people_of, {})
    assert torch.equal(_flux_latents(elsewhere.use("anna").pipe), anna)
    twice = _flux_latents(attached.use("anna", user_guidance=0.0).pipe)
    torch.testing.assert_close(twice, base, rtol=1e-4, atol=1e-4)
    attached.detach()
    assert torch.equal(_flux_latents(pipe), base)


def _flux() -> Any:
    nothing = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    vae, scheduler = tiny_pipeline("sd").vae, diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = diffusers.FluxPipeline(scheduler=scheduler, vae=vae, transformer=flux(), **nothing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _flux_latents(pipe: Any) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(1, 5, 32, generator=draw), torch.randn(1, 32, generator=draw)
    return pipe(
        prompt_embeds=text, pooled_prompt_embeds=pooled, num_inference_steps=1, generator=draw, height=32,
        width=32, output_type="latent",
    ).images  # fmt: skip


def test_files_of_another_adapter_are_refused_and_leave_the_model(tmp_path: Path) -> None:
    folder, other = saved("sd", tmp_path / "one"), saved("sd", tmp_path / "two", width=16)
    name = "diffalign_user_adapter.safetensors"
    (folder / name).write_bytes((other / name).read_bytes())
    denoiser = kept_pipeline("sd").unet
    before = {n: type(p) for n, p in denoiser.attn_processors.items()}
    with pytest.raises(ValueError, match=r"does not fit this UNet2DConditionModel: .* of another shape"):
        load_adapter(denoiser, folder)
    assert {n: type(p) for n, p in denoiser.attn_processors.items()} == before
    (folder / "user_adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no configuration in format 1"):
        load_adapter(denoiser, folder)
    with pytest.raises(ValueError, match="rank is -1"):
        BranchOptions(rank=-1)


def test_groups_of_the_optimiser() -> None:
    adapter = trained(tiny_pipeline("sd").unet, rank=2)
    groups = adapter.groups(1e-4, 1e-5, 0.01)
    assert sum(len(g["params"]) for g in groups) == len(adapter.parameters())
    still = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for keys in adapter.layers.values():
        assert all(id(p) in still for p in keys.v.parameters())
        assert not any(id(p) in still for p in keys.k.parameters())
    assert id(adapter.encoder.people) in still
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(adapter.encoder.people)] == 1e-4


FRESH = """
import sys
import torch
from diffalign.personalize import Attached, attach
from tests.personalize.helpers import float_pipeline, latents
from safetensors.torch import save_file
attached = attach(float_pipeline(sys.argv[1]), sys.argv[2])
save_file({"found": latents(attached.use("ben").pipe)}, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_process_makes_the_same_bits(family: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pipe = float_pipeline(family)
    adapter = trained(denoiser_of(pipe))
    folder = saved(family, tmp_path / "adapter")
    attached_here = diffalign.personalize.Attached(pipe, adapter, None, {})
    expected = latents(attached_here.use(adapter.encoder.people[1].detach()).pipe)
    out = tmp_path / "out.safetensors"
    command = [sys.executable, "-c", FRESH, family, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(out)["found"], expected)


@pytest.mark.slow
def test_a_lora_and_people_compose(tmp_path: Path) -> None:
    from peft import LoraConfig

    folder, pipe, other = saved("sd", tmp_path), float_pipeline("sd"), float_pipeline("sd")
    config = LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False)
    base, anna = latents(pipe), latents(attach(float_pipeline("sd"), folder).use("anna").pipe)
    attached = attach(pipe, folder)
    torch.manual_seed(6)
    pipe.unet.add_adapter(config)
    lora, both = latents(attached.nobody().pipe), latents(attached.use("anna").pipe)
    found = [base, anna, lora, both]
    assert min((a - b).abs().max() for i, a in enumerate(found) for b in found[:i]) > 1e-3
    torch.manual_seed(6)
    other.unet.add_adapter(config)  # a LoRA that was there before
    assert torch.equal(latents(attach(other, folder).use("anna").pipe), both)
    pipe.unet.disable_adapters()
    torch.testing.assert_close(latents(attached.use("anna").pipe), anna)
