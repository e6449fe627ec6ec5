"""A backend for all layers of a model: the same predictions, users on top of it, and what the log says."""

from __future__ import annotations

import pytest
import torch

from diffalign.attention.attend import Attend, Problem
from diffalign.attention.install import attention_lines, attention_of, chosen_lines, set_attention
from diffalign.attention.processors import attach_users
from tests.attention.test_processors import FAMILIES, WIDTH, model, run, tokens, trained


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_computes_what_it_did_by_the_backend(family, monkeypatch):
    denoiser = model(family)
    base = run(family, denoiser)
    attend, asked = set_attention(denoiser, "sdpa_math"), []
    call = Attend.__call__

    def counted(self, *tensors):
        asked.append(self.name)
        return call(self, *tensors)

    monkeypatch.setattr(Attend, "__call__", counted)
    torch.testing.assert_close(run(family, denoiser), base, rtol=1e-5, atol=1e-6)
    assert asked == ["sdpa_math"] * len(denoiser.attn_processors)
    assert attention_of(denoiser) is attend


@pytest.mark.parametrize("family", FAMILIES)
def test_users_are_attached_on_top_and_keep_the_backend(family):
    plain, chosen = model(family), model(family)
    set_attention(chosen, "sdpa_math")
    for denoiser in (plain, chosen):
        torch.manual_seed(4)
        trained(attach_users(denoiser, WIDTH))
    attend = attention_of(chosen)
    assert attend is not None
    assert attend.name == "sdpa_math"
    given = {"user_tokens": tokens(), "user_scale": torch.ones(2)}
    torch.testing.assert_close(
        run(family, chosen, **given), run(family, plain, **given), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="users are attached already"):
        set_attention(chosen)


def test_another_backend_for_users_replaces_the_first():
    denoiser = model("sd")
    set_attention(denoiser, "sdpa_math")
    attach_users(denoiser, WIDTH, backend="sdpa")
    assert {p.attend.name for p in denoiser.attn_processors.values()} == {"sdpa"}


def test_the_log_says_what_is_used_and_why_others_are_not():
    denoiser = model("sd")
    assert attention_of(denoiser) is None
    assert attention_lines(denoiser) == [
        "attention   diffusers' own; torch chooses the kernel (policy.attention names another)"
    ]
    attend = set_attention(denoiser)
    first, *others = attention_lines(denoiser)
    assert first == "attention   auto: sdpa"
    assert any("sdpa_cudnn" in line and "needs a GPU" in line for line in others)
    assert chosen_lines(denoiser) == []
    problem = Problem(
        q=(2, 64, 4, 16), keys=7, dtype=torch.float32, device=torch.device("cpu"), backward=True
    )
    attend.chosen[problem] = "sdpa_flash"
    (line,) = chosen_lines(denoiser)
    assert "sdpa_flash for batch 2, 64 queries, 7 keys" in line


def test_errors():
    with pytest.raises(ValueError, match="none of auto"):
        set_attention(model("sd"), "fast")
    with pytest.raises(RuntimeError, match="needs a GPU"):
        set_attention(model("sd"), "sdpa_cudnn")
