"""Own pictures and further draws: what they are of, on networks whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted, GaussianNoise
from diffalign.diffusion.process import Process
from diffalign.diffusion.timesteps import Uniform
from diffalign.train.extras import further_errors, rollout, rollout_distance

ALPHAS = torch.linspace(0.9999, 0.001, 1000, dtype=torch.float64)
PROCESSES = {
    "eps": Process(prediction="eps", alphas_cumprod=ALPHAS),
    "v": Process(prediction="v", alphas_cumprod=ALPHAS),
    "flow": Process(prediction="flow"),
}


class Two:
    """Policy and reference that each see one picture in everything."""

    def __init__(self, process: Process, policy: float, reference: float) -> None:
        self.process, self.policy, self.other = process, torch.tensor(policy, requires_grad=True), reference
        self.inside = False

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        seen = (self.other if self.inside else self.policy) * torch.ones_like(x)
        a, s = (c.to(x.dtype).view(-1, 1, 1, 1) for c in self.process.coefficients(t))
        return self.process.target(seen, (x - a * seen) / s, t)

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.inside = True
        yield
        self.inside = False


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_rollout_ends_at_the_picture_that_the_network_sees(kind: str) -> None:
    two = Two(PROCESSES[kind], 0.3, 0.0)
    start = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    found = rollout(start, two.predict, PROCESSES[kind])
    torch.testing.assert_close(found, torch.full_like(found, 0.3), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


def batch(process: Process, units: tuple[int, ...] = (5, 5, 9, 9)) -> Corrupted:
    x0 = torch.zeros(len(units), 1, 4, 4, dtype=torch.float64)
    return GaussianNoise()(x0, units, process, Uniform(low=0.3, high=0.9))


@pytest.mark.parametrize("kind", PROCESSES)
def test_the_distance_is_that_of_the_two_and_moves_the_policy_alone(kind: str) -> None:
    process = PROCESSES[kind]
    two, noisy = Two(process, 0.3, 0.1), batch(process)
    found = rollout_distance(two.predict, two.predict, two.reference, noisy, process)
    a, s = process.coefficients(noisy.t)
    slope = {"eps": a / s, "v": 1 / s, "flow": 1 / s}[kind]  # of the prediction in the picture seen
    torch.testing.assert_close(found, (0.2 * slope.double()) ** 2, rtol=1e-4, atol=1e-9)
    found.sum().backward()
    assert two.policy.grad is not None
    assert two.policy.grad > 0
    same = Two(process, 0.3, 0.3)
    assert rollout_distance(same.predict, same.predict, same.reference, noisy, process).max() < 1e-10


def test_rows_have_rollouts_of_their_own() -> None:
    seen: list[Tensor] = []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.detach())
        return torch.zeros_like(x)

    two = Two(PROCESSES["eps"], 0.3, 0.1)
    rollout_distance(predict, predict, two.reference, batch(PROCESSES["eps"]), PROCESSES["eps"])
    assert len(torch.unique(seen[0].flatten(1), dim=0)) == 4
    again = len(seen)
    rollout_distance(predict, predict, two.reference, batch(PROCESSES["eps"], (9, 9)), PROCESSES["eps"])
    torch.testing.assert_close(seen[again], seen[0][2:], rtol=0, atol=0)


def test_further_draws_are_other_draws_and_their_mean() -> None:
    two, drawn = Two(PROCESSES["eps"], 0.5, 0.25), []

    def corrupt(units: object) -> Corrupted:
        drawn.append(tuple(units))  # type: ignore[arg-type]
        return batch(PROCESSES["eps"])

    def error(noisy: Corrupted) -> Tensor:
        return torch.full((4,), (0.0 if two.inside else 1.0) + len(drawn))

    own, other = further_errors(corrupt, error, two.reference, (5, 5, 9, 9), 3)
    assert own.tolist() == [3.0] * 4  # of 2, 3 and 4
    assert other.tolist() == [2.0] * 4
    assert len(set(drawn)) == 3
    assert all(a == b != c == d for a, b, c, d in drawn)
