"""The place for scorers of noisy latents: registering, loading, checking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scorers.latent import LatentScorer, check_latents, latent_scorers, load_latent
from scorers.registry import RegistryError


class Quiet:
    """Prefers latents with little noise for their timestep."""

    name, version, dims, range = "quiet", "1", ("preference",), (-float("inf"), 0.0)
    higher_better, needs, kind = True, frozenset({"prompt", "timestep"}), "pointwise"
    space, differentiable, licence, citation = "latent", True, "none", "none"

    def score_latents(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        check_latents(latents, timesteps, prompts)
        return -latents.square().mean((1, 2, 3)) / (1 + timesteps)

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Quiet:
        return cls()


class Pixel(Quiet):
    """A scorer of pictures at the wrong door."""

    space = "pixel"


@pytest.fixture
def registered() -> Iterator[None]:
    latent_scorers.register("test-quiet")(Quiet)
    latent_scorers.register("test-pixel")(Pixel)
    yield
    del latent_scorers._entries["test-quiet"], latent_scorers._entries["test-pixel"]


@pytest.mark.usefixtures("registered")
def test_a_latent_scorer_is_found_and_scores() -> None:
    scorer = load_latent("test-quiet")
    assert isinstance(scorer, LatentScorer)
    x = torch.full((2, 4, 8, 8), 2.0, requires_grad=True)
    found = scorer.score_latents(x, torch.tensor([0, 3]), ["a", "b"])
    assert found.tolist() == [-4, -1]
    found.sum().backward()
    assert x.grad is not None
    with pytest.raises(TypeError, match="space 'latent'"):
        load_latent("test-pixel")


def test_unknown_names_and_bad_arguments() -> None:
    with pytest.raises(RegistryError, match="no latent scorer is called 'lmr'; did you mean 'lrm'"):
        load_latent("lmr")
    with pytest.raises(FileNotFoundError, match="scorer 'lrm' needs weights"):
        load_latent("lrm")
    x = torch.rand(2, 4, 8, 8)
    for latents, timesteps, prompts, why in (
        (x[0], torch.zeros(4), ["a"] * 4, r"\(B, C, h, w\)"),
        (x, torch.tensor(3), ["a", "b"], "as many timesteps"),
        (x, torch.zeros(2), ["a"], "as many prompts, got 1"),
        (x, torch.zeros(2), "ab", "got one string"),
    ):
        with pytest.raises(ValueError, match=why):
            check_latents(latents, timesteps, prompts)
