"""Changed initial noise: what is changed, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffalign.evaluate.generate import Sampling, generate
from diffalign.evaluate.request import RequestError
from diffalign.evaluate.studies import initial_noise, istd, path, read_shift, shifted
from diffalign.policy import load_policy
from tests.tiny import tiny_folder


def fake(sigma: float = 2.0) -> SimpleNamespace:
    """A policy whose scheduler starts from noise of this s.d."""
    return SimpleNamespace(pipeline=SimpleNamespace(scheduler=SimpleNamespace(init_noise_sigma=sigma)))


def test_shifts_are_read() -> None:
    assert read_shift("scale=1.1") == ("scale", 1.1)
    assert read_shift("mean=-0.1") == ("mean", -0.1)
    for wrong in ("scale", "scale=x", "scale=0", "turn=1", "mean=nan"):
        with pytest.raises(RequestError, match="not understood"):
            read_shift(wrong)


def test_shifts_by_hand() -> None:
    x = torch.tensor([1.0, -2.0])
    assert shifted(fake(), "scale=1.5")(x).tolist() == [1.5, -3.0]
    assert shifted(fake(), "mean=0.1")(x).tolist() == pytest.approx([1.2, -1.8])


def test_a_path_goes_from_one_noise_to_the_other_at_equal_variance() -> None:
    first = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0)) * 2
    rows = path(fake(), [7], 5)(first[:1].expand(5, -1, -1, -1))
    assert torch.equal(rows[0], first[0])
    second = torch.randn(8, 16, 16, generator=torch.Generator().manual_seed(7)) * 2
    assert torch.allclose(rows[-1], second, atol=1e-6)
    assert rows.flatten(1).std(1).tolist() == pytest.approx([2.0] * 5, rel=0.05)


def test_istd_is_zero_for_even_steps_only() -> None:
    ramp = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    assert istd(ramp) == pytest.approx(0, abs=1e-9)
    jump = torch.tensor([0.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    assert istd(jump) == pytest.approx(0.5)  # distances 0 and 1


@pytest.mark.parametrize("family", ["sd", pytest.param("sd3", marks=pytest.mark.slow)])
def test_pipelines_start_from_changed_noise_and_are_left_as_they_were(family: str, tmp_path: Path) -> None:
    policy = load_policy(tiny_folder(family, tmp_path))
    ask = (policy, ["a red circle"], [0], Sampling(steps=2))
    before = generate(*ask)
    with initial_noise(policy.pipeline, lambda x: x):
        assert torch.equal(generate(*ask), before)
    with initial_noise(policy.pipeline, shifted(policy, "scale=1.5")):
        assert not torch.equal(generate(*ask), before)
    assert torch.equal(generate(*ask), before)
    assert "prepare_latents" not in vars(policy.pipeline)
