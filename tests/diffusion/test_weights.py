"""Weights w(t) and the discount, by hand, as recipes state them, and against each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from diffalign.config import ConfigError, dump, load
from diffalign.diffusion.process import Process
from diffalign.diffusion.timesteps import Discounted, Timesteps
from diffalign.diffusion.weights import Discount, ErrorWeight, MinSnr, Sigmoid, error_weight
from tests.diffusion.test_inversion import process_of

KINDS = ["eps", "v", "x0", "flow"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """As much of a recipe as states weight and times."""

    error_weight: ErrorWeight = "one"
    timesteps: Timesteps = field(default_factory=Discounted)


def times(process: Process) -> torch.Tensor:
    return torch.tensor([0.05, 0.5, 0.95]).double() if process.is_flow else torch.tensor([50, 500, 950])


@pytest.mark.parametrize("kind", KINDS)
def test_sigmoid_means_the_same_on_every_model(kind: str) -> None:
    """Errors of eps times sigmoid(b - log SNR)."""
    process = process_of(kind)
    t = times(process)
    a, s = process.coefficients(t)
    expected = process.weight(t, "eps_equivalent") * torch.sigmoid(1.5 - 2 * (a / s).log())
    torch.testing.assert_close(process.weight(t, "sigmoid", b=1.5), expected)
    if kind == "eps":
        torch.testing.assert_close(expected, torch.sigmoid(1.5 - 2 * (a / s).log()))


@pytest.mark.parametrize("kind", KINDS)
def test_eps_slope_is_the_derivative_of_eps(kind: str) -> None:
    process = process_of(kind)
    t, x = times(process), torch.randn(3, 2, dtype=torch.float64)
    step = process.convert(x + 1, x, t, "eps") - process.convert(x, x, t, "eps")
    torch.testing.assert_close(step[:, 0], process.eps_slope(t).double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(process.eps_slope(t).square(), process.weight(t, "eps_equivalent"))


def test_discount_by_hand() -> None:
    t = torch.tensor([999, 980, 979, 0])  # k = 0, 0, 1, 49
    whole = (1 - 0.9**50) / 0.1
    expected = torch.tensor([1, 1, 0.9, 0.9**49], dtype=torch.float64) * 50 / whole
    torch.testing.assert_close(process_of("eps").weight(t, "discount"), expected, rtol=1e-6, atol=0)
    every = process_of("eps").weight(torch.arange(1000), "discount", 0.8)
    assert every.mean().item() == pytest.approx(1)
    flow = process_of("flow").weight(torch.tensor([1.0, 0.985, 0.975, 0.001]), "discount")
    torch.testing.assert_close(flow.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_discounted_times_have_the_discount_as_density(kind: str) -> None:
    """Density over uniform t = the weight, part by part: sampling and weighting have the same mean."""
    process = process_of(kind)
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    t = Discounted(gamma=0.9).times(u, process)
    share = t if process.is_flow else (t + 0.5) / 1000
    counts = torch.histogram(share.double(), bins=50, range=(0.0, 1.0)).hist / 4000
    middle = (torch.arange(50) + 0.5) / 50
    places = middle if process.is_flow else (middle * 1000).long()
    expected = process.weight(places, "discount", 0.9).double()
    torch.testing.assert_close(counts, expected, rtol=2e-3, atol=2e-3)
    assert (t[1:] >= t[:-1]).all()
    uniform = Discounted(gamma=1.0).quantile(u)
    torch.testing.assert_close(uniform, u, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("snr", "snr"),
        ("min_snr", "min_snr"),
        ({"name": "min_snr", "gamma": 3.0}, MinSnr(gamma=3.0)),
        ({"name": "sigmoid", "b": -1.0}, Sigmoid(b=-1.0)),
        ({"name": "discount"}, Discount()),
    ],
)
def test_recipes_state_a_name_or_a_block(given: Any, expected: Any) -> None:
    config = load(Recipe, {"error_weight": given})
    assert config.error_weight == expected
    assert load(Recipe, {}, ["error_weight=" + str(given).replace("'", "")]) == config
    import yaml

    assert load(Recipe, yaml.safe_load(dump(config))) == config


def test_wrong_weights_are_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'snr'"):
        load(Recipe, {"error_weight": "snrr"})
    with pytest.raises(ConfigError, match="gamma is 2"):
        load(Recipe, {"error_weight": {"name": "discount", "gamma": 2.0}})
    with pytest.raises(ConfigError, match=r"timesteps\.gamma is 0"):
        load(Recipe, {"timesteps": {"name": "discounted", "gamma": 0.0}})
    with pytest.raises(ValueError, match="gamma is 0"):
        MinSnr(gamma=0.0)


def test_error_weight_dispatches() -> None:
    process = process_of("flow")
    t = times(process)
    assert error_weight("one", process, t) is None
    for stated, name, options in [
        ("snr", "snr", {}),
        ("min_snr", "min_snr", {"gamma": 5.0}),
        ("discount", "discount", {"gamma": 0.9}),
        (MinSnr(gamma=2.0), "min_snr", {"gamma": 2.0}),
        (Discount(gamma=0.5), "discount", {"gamma": 0.5}),
        (Sigmoid(b=2.0), "sigmoid", {"b": 2.0}),
    ]:
        expected = process.weight(t, name, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(error_weight(stated, process, t), expected)  # type: ignore[arg-type]
