"""Users in a tiny UNet and a tiny SD3: nothing changes before training, and what is passed has its effect."""

from __future__ import annotations

import logging
from functools import cache, partial
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from diffalign.attention.install import set_attention
from diffalign.attention.processors import UserAttention, UserJointAttention, attach_users
from tests.tiny import tiny_pipeline

WIDTH = 24
FAMILIES = {"sd": "cross_attention_kwargs", "sd3": "joint_attention_kwargs"}


def model(family: str) -> Any:
    pipeline = tiny_pipeline(family)
    return (pipeline.unet if family == "sd" else pipeline.transformer).float()


@cache
def inputs(family: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    config = model(family).config
    side = config.sample_size
    x = torch.randn(2, config.in_channels, side, side)
    t = torch.tensor([3, 500])
    if family == "sd":
        context = torch.randn(2, 7, config.cross_attention_dim)
        return {"sample": x, "timestep": t, "encoder_hidden_states": context}
    context = torch.randn(2, 7, config.joint_attention_dim)
    pooled = torch.randn(2, config.pooled_projection_dim)
    return {"hidden_states": x, "timestep": t, "encoder_hidden_states": context, "pooled_projections": pooled}


def run(family: str, denoiser: Any, **users: torch.Tensor) -> torch.Tensor:
    given = {FAMILIES[family]: users} if users else {}
    return denoiser(**inputs(family), **given).sample


def tokens(width: int = WIDTH) -> torch.Tensor:
    return torch.randn(2, 4, width, generator=torch.Generator().manual_seed(2))


def trained(users: dict[str, Any]) -> None:
    """As if the values had been trained."""
    torch.manual_seed(3)
    for keys in users.values():
        torch.nn.init.normal_(keys.v.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_users_begin_without_effect_and_act_by_their_scale(family, caplog):
    denoiser = model(family)
    base = run(family, denoiser)
    users = attach_users(denoiser, WIDTH)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(family, denoiser), base)
        assert torch.equal(run(family, denoiser, user_tokens=tokens()), base)
        trained(users)
        assert torch.equal(run(family, denoiser), base)
        mixed = run(family, denoiser, user_tokens=tokens(), user_scale=torch.tensor([0.0, 1.0]))
    assert caplog.text == ""
    assert torch.equal(mixed[0], base[0])
    assert (mixed[1] - base[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_with_checkpointing(family):
    denoiser = model(family)
    users = attach_users(denoiser, WIDTH)
    denoiser.requires_grad_(False).train()
    for keys in users.values():
        keys.requires_grad_()
    first = tokens().requires_grad_()
    run(family, denoiser, user_tokens=first).square().sum().backward()
    assert all(keys.v.weight.grad.abs().max() > 0 for keys in users.values())
    assert all(keys.k.weight.grad.abs().max() == 0 for keys in users.values())  # values are zero
    trained(users)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            denoiser.enable_gradient_checkpointing()
        given = tokens().requires_grad_()
        run(family, denoiser, user_tokens=given).square().sum().backward()
        found.append(given.grad)
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "function",
    [partial(checkpoint, use_reentrant=True), lambda *given: checkpoint(*given, use_reentrant=True)],
    ids=["partial", "opaque"],
)
def test_reentrant_checkpointing_set_later_is_refused_at_the_first_step(family, function):
    denoiser = model(family)
    attach_users(denoiser, WIDTH)
    denoiser.train().enable_gradient_checkpointing(function)
    wanted = tokens().requires_grad_()
    with pytest.raises(ValueError, match=r"reentrant checkpointing.*use_reentrant=False"):
        run(family, denoiser, user_tokens=wanted)
    with torch.no_grad():  # sampling recomputes nothing, and has no gradient to lose
        denoiser.eval()
        run(family, denoiser, user_tokens=wanted)


def test_a_layer_adds_attention_to_users_before_its_output_weights():
    denoiser = model("sd")
    name = next(n for n in denoiser.attn_processors if n.endswith("attn2.processor"))
    attn = denoiser.get_submodule(name.removesuffix(".processor"))
    users = attach_users(denoiser, WIDTH)
    trained(users)
    x = torch.randn(2, 5, attn.to_q.in_features)
    context = torch.randn(2, 7, attn.to_k.in_features)
    scale = torch.tensor([0.5, -2.0])
    q = attn.to_q(x).unflatten(-1, (attn.heads, -1))
    k, v = users[name](tokens())
    s = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    added = torch.einsum("bhnm,bmhd->bnhd", s.softmax(-1), v).flatten(2) * scale[:, None, None]
    expected = attn(x, context) + linear(added, attn.to_out[0].weight)
    found = attn(x, context, user_tokens=tokens(), user_scale=scale)
    torch.testing.assert_close(found, expected)
    mask = torch.zeros(2, 1, 7)
    masked = attn(x, context, attention_mask=mask, user_tokens=tokens(), user_scale=scale)
    torch.testing.assert_close(masked, expected)


def test_which_layers_take_users_and_how_they_begin():
    denoiser = model("sd")
    users = attach_users(denoiser, denoiser.config.cross_attention_dim)
    assert all(name.endswith("attn2.processor") for name in users)
    assert len(users) == len(denoiser.attn_processors) // 2
    for name, keys in users.items():
        assert isinstance(denoiser.attn_processors[name], UserAttention)
        assert torch.equal(keys.k.weight, denoiser.get_submodule(name.removesuffix(".processor")).to_k.weight)
        assert not keys.v.weight.any()
    assert any("users.v.weight" in name for name in denoiser.state_dict())
    joint = model("sd3")
    found = attach_users(joint, WIDTH, rank=3)
    assert all(isinstance(joint.attn_processors[name], UserJointAttention) for name in found)
    assert {tuple(keys.v[0].weight.shape) for keys in found.values()} == {(3, WIDTH)}
    assert torch.equal(run("sd3", joint, user_tokens=tokens()), run("sd3", joint))


def test_the_backend_that_was_asked_for_is_used(monkeypatch):
    from diffalign.attention import attend

    asked = []

    def attention(q, k, v, mask=None, *, name):
        asked.append(name)
        return torch.zeros_like(q)

    monkeypatch.setattr(attend, "attention", attention)
    denoiser = model("sd")
    attach_users(denoiser, WIDTH, backend="sdpa_math")
    run("sd", denoiser, user_tokens=tokens())
    assert asked == ["sdpa_math"] * len(denoiser.attn_processors)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_form_around_a_layers_own_processor_gives_the_same(family):
    """The delegate knows nothing of the layer but its queries and output weights: an oracle of the others.

    Output weights have a LoRA here, and whatever is trained of them acts on what users add as well.
    """
    found, gradients = [], []
    for delegate in (False, True):
        denoiser = model(family)
        torch.manual_seed(6)
        denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_out.0"], init_lora_weights=False))
        torch.manual_seed(5)
        users = attach_users(denoiser, WIDTH, delegate=delegate)
        trained(users)
        given = tokens().requires_grad_()
        out = run(family, denoiser, user_tokens=given, user_scale=torch.tensor([0.7, -2.0]))
        out.square().sum().backward()
        found.append(out.detach())
        gradients.append(given.grad)
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)


def flux():
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def run_flux(denoiser, **users):
    torch.manual_seed(1)
    return denoiser(
        hidden_states=torch.randn(2, 6, 4),
        encoder_hidden_states=torch.randn(2, 5, 32),
        pooled_projections=torch.randn(2, 32),
        timestep=torch.tensor([0.3, 0.5]),
        img_ids=torch.randn(6, 3),
        txt_ids=torch.zeros(5, 3),
        joint_attention_kwargs=users or None,
    ).sample


def test_flux_takes_users_in_its_double_blocks(caplog):
    denoiser = flux()
    base = run_flux(denoiser)
    users = attach_users(denoiser, WIDTH)
    assert sorted(users) == [f"transformer_blocks.{i}.attn.processor" for i in (0, 1)]
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run_flux(denoiser, user_tokens=tokens()), base)
        trained(users)
        mixed = run_flux(denoiser, user_tokens=tokens(), user_scale=torch.tensor([0.0, 1.0]))
    assert caplog.text == ""
    assert torch.equal(mixed[0], base[0])
    assert (mixed[1] - base[1]).abs().max() > 1e-3
    denoiser.requires_grad_(False).train().enable_gradient_checkpointing()
    given = tokens().requires_grad_()
    run_flux(denoiser, user_tokens=given).square().sum().backward()
    assert given.grad.abs().max() > 0
    denoiser.set_attention_backend("_native_math")  # diffusers' own choice reaches the processor within
    own = denoiser.attn_processors["transformer_blocks.0.attn.processor"].own
    assert own._attention_backend == "_native_math"
    with pytest.raises(ValueError, match="attached already"):
        attach_users(denoiser, WIDTH)
    with pytest.raises(ValueError, match="keeps its own processors: choose theirs by its set_attention_b"):
        attach_users(flux(), WIDTH, backend="sdpa")


def test_a_layer_of_flux_adds_attention_to_users_for_the_picture_alone():
    denoiser = flux()
    block = denoiser.transformer_blocks[0].attn
    own = block.processor
    users = attach_users(denoiser, WIDTH)
    trained(users)
    x, text, scale = torch.randn(2, 6, 32), torch.randn(2, 5, 32), torch.tensor([0.5, -2.0])
    expected = own(block, x, text)
    q = block.norm_q(block.to_q(x).unflatten(-1, (2, -1)))
    k, v = users["transformer_blocks.0.attn.processor"](tokens())
    s = torch.einsum("bnhd,bmhd->bhnm", q, k) / 4
    added = torch.einsum("bhnm,bmhd->bnhd", s.softmax(-1), v).flatten(2) * scale[:, None, None]
    found = block(x, text, user_tokens=tokens(), user_scale=scale)
    torch.testing.assert_close(found[0], expected[0] + linear(added, block.to_out[0].weight))
    assert torch.equal(found[1], expected[1])


def test_what_cannot_be_attached_or_passed_is_refused():
    denoiser = model("sd")
    with pytest.raises(RuntimeError, match="sdpa_cudnn cannot be used"):
        attach_users(denoiser, WIDTH, backend="sdpa_cudnn")
    attach_users(denoiser, WIDTH)
    with pytest.raises(ValueError, match="attached already"):
        attach_users(denoiser, WIDTH)
    with pytest.raises(
        ValueError, match=r"user tokens are \(2, 4, 9\); this model takes \(users, tokens, 24\)"
    ):
        run("sd", denoiser, user_tokens=tokens(9))
    with pytest.raises(ValueError, match=r"scale is \(3, 1\)"):
        run("sd", denoiser, user_tokens=tokens(), user_scale=torch.ones(3))


def test_processors_of_other_families_are_refused():
    denoiser = model("sd")
    name = next(iter(denoiser.attn_processors))

    class WanAttnProcessor:
        pass

    denoiser.get_submodule(name.removesuffix(".processor")).processor = WanAttnProcessor()
    with pytest.raises(ValueError, match=rf"{name} has a WanAttnProcessor"):
        attach_users(denoiser, WIDTH)


@pytest.mark.parametrize("attach", [set_attention, lambda model: attach_users(model, WIDTH)])
def test_models_without_processors_are_refused(attach):
    with pytest.raises(ValueError, match="attention of a Linear cannot be replaced"):
        attach(torch.nn.Linear(2, 2))


def test_a_transformer_with_cross_attention_and_a_mask_over_its_text():
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    denoiser = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=False,
    )
    given = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 7, 12),
        "timestep": torch.tensor([3, 500]),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1] * 7]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    base = denoiser(**given).sample
    users = attach_users(denoiser, WIDTH)
    trained(users)
    passed = {"user_tokens": tokens(), "user_scale": torch.tensor([0.0, 1.0])}
    mixed = denoiser(**given, cross_attention_kwargs=passed).sample
    assert len(users) == 1
    assert torch.equal(mixed[0], base[0])
    assert (mixed[1] - base[1]).abs().max() > 1e-4
