"""Two people who see every pair the other way round: one model serves both, and a user-blind one cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.spaces import native_error
from diffalign.objectives import Denoised, build
from diffalign.personalize.adapter import add_users
from diffalign.personalize.encoders import About, make_options
from tests.personalize.helpers import float_pipeline

PAIRS = 8


class Problem:
    """Two clean latents; one person prefers the first, the other the second."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.unet: Any = float_pipeline("sd").unet.requires_grad_(False)
        self.x0 = torch.randn(2, 8, 4, 4)
        self.text = torch.randn(1, 7, self.unet.config.cross_attention_dim)

    def errors(self, x0: Tensor, noise: Tensor, t: Tensor, tokens: Tensor | None) -> Tensor:
        """(N,) errors of noise prediction for tokens (N / 2, K, D), or of the base."""
        a = (1 - t / 1000)[:, None, None, None]
        given = None if tokens is None else {"user_tokens": tokens, "user_scale": torch.ones(len(x0))}
        x_t = a.sqrt() * x0 + (1 - a).sqrt() * noise
        text = self.text.expand(len(x0), -1, -1)
        pred = self.unet(x_t, t, encoder_hidden_states=text, cross_attention_kwargs=given).sample
        return native_error(pred, noise)

    def batch(self, encoder: Any, seed: int, blind: bool) -> Denoised:
        """Pairs of both people in turn, winner first, both sides with one noise."""
        draw = torch.Generator().manual_seed(seed)
        who = torch.arange(PAIRS) % 2
        x0 = self.x0[torch.stack([who, 1 - who], 1).flatten()]
        noise = torch.randn(PAIRS, 8, 4, 4, generator=draw).repeat_interleave(2, 0)
        t = torch.randint(100, 900, (PAIRS,), generator=draw).repeat_interleave(2)
        own, other = (encoder(About(rows=rows * (not blind))) for rows in (who, 1 - who))
        with torch.no_grad():
            reference = self.errors(x0, noise, t, None)
        return Denoised(
            error=self.errors(x0, noise, t, own),
            ref_error=reference,
            group=torch.arange(PAIRS).repeat_interleave(2),
            role=torch.tensor([1, -1] * PAIRS),
            t=t,
            extra={"other_error": self.errors(x0, noise, t, other)},
        )


def trained(blind: bool) -> tuple[Tensor, Tensor]:
    """(P, 2) margins of each person over the reference, and of own over other tokens, on fresh noise."""
    problem = Problem()
    adapter = add_users(problem.unet, make_options("table", {"tokens": 4, "width": 24}), people=2)
    pair = build("dpo", beta=200.0)
    objective = build("own_other", pair=pair, weight=0.1, beta=200.0, on="all")
    optimizer = torch.optim.AdamW(adapter.groups(1e-2, 1e-2, 0.0))
    for step in range(60):
        loss, _ = objective.loss(problem.batch(adapter.encoder, step, blind))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    with torch.no_grad():
        found = [objective.loss(problem.batch(adapter.encoder, 10_000 + i, blind))[1] for i in range(8)]
    return tuple(torch.cat([f[name] for f in found]).view(-1, 2) for name in ("margin", "own_minus_other"))


def surely_above_zero(values: Tensor) -> bool:
    """Whether the mean of each of two columns is two standard errors above 0."""
    return bool((values.mean(0) > 2 * values.std(0) / len(values) ** 0.5).all())


@pytest.mark.slow
def test_one_model_serves_people_of_opposite_tastes() -> None:
    margin, own_minus_other = trained(blind=False)
    assert surely_above_zero(margin)
    assert surely_above_zero(own_minus_other)


@pytest.mark.slow
def test_a_user_blind_model_cannot_serve_both() -> None:
    margin, own_minus_other = trained(blind=True)
    assert own_minus_other.abs().max() == 0
    assert not surely_above_zero(margin)
