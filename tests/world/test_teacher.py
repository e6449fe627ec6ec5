"""The UNet as a teacher of velocities: right where it is right, silent where it has never been."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from diffalign.world.teacher import Teacher

ALPHAS = torch.linspace(0.999, 0.01, 1000)


def teacher(monkeypatch: pytest.MonkeyPatch, folder: Path, unet: torch.nn.Module) -> Teacher:
    """A teacher whose network is a stub."""
    pipeline = SimpleNamespace(
        unet=unet,
        text_encoder=torch.nn.Identity(),
        scheduler=SimpleNamespace(alphas_cumprod=ALPHAS),
        encode_prompt=lambda prompts, *rest: (torch.zeros(len(prompts), 2, 3), None),
    )
    loader = SimpleNamespace(from_pretrained=lambda path: pipeline)
    monkeypatch.setattr("diffalign.world.teacher.DiffusionPipeline", loader)
    return Teacher(folder)


class Exact(torch.nn.Module):
    """The noise of one picture, found from the noisy latents a x0 + s n; keeps what it was asked."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x0, self.asked = x0, []

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> SimpleNamespace:
        assert text.shape[0] == len(x)
        self.asked += t.tolist()
        a, s = ALPHAS[t].sqrt().view(-1, 1, 1, 1), (1 - ALPHAS[t]).sqrt().view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(x - a * self.x0) / s)


def rows(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x0, x_sigma and velocity target."""
    x0, noise = torch.randn(2, len(sigma), 4, 2, 2, generator=torch.Generator().manual_seed(0))
    return x0, (1 - sigma) * x0 + sigma * noise, noise - x0


def test_an_exact_teacher_leaves_the_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    a = ALPHAS.sqrt()
    places = torch.tensor([5, 400, 900])
    sigma = ((1 - a**2).sqrt() / (a + (1 - a**2).sqrt()))[places].view(-1, 1, 1, 1)
    x0, x, target = rows(sigma)
    network = Exact(x0)
    found = teacher(monkeypatch, tmp_path, network).calm(target, x, sigma, ["p"] * 3)
    assert network.asked == places.tolist()
    torch.testing.assert_close(found, target, rtol=1e-4, atol=1e-4)


def test_half_of_the_target_is_the_teachers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sigma = torch.full((2, 1, 1, 1), 0.5)
    x0, x, target = rows(sigma)
    other = x0 + 1  # a teacher that sees another picture: x0 + 1, and noise less by (1 - s) / s
    found = teacher(monkeypatch, tmp_path, Exact(other)).calm(target, x, sigma, ["p"] * 2)
    torch.testing.assert_close(found - target, torch.full_like(found, -1.0), rtol=0.02, atol=0.02)


def test_times_that_it_never_saw_are_left_to_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sigma = torch.tensor([1e-4, 0.5, 0.9999]).view(-1, 1, 1, 1)
    x0, x, target = rows(sigma)
    found = teacher(monkeypatch, tmp_path, Exact(x0 + 1)).calm(target, x, sigma, ["p"] * 3)
    torch.testing.assert_close(found[[0, 2]], target[[0, 2]], rtol=0, atol=0)
    assert (found[1] - target[1]).abs().min() > 0.5


def test_an_untrained_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train the stage 'unet' first"):
        Teacher(tmp_path / "none")
