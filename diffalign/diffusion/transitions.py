"""Kinds of denoising steps, each as tables of the coefficients of ``samplers.Sampler``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffalign.diffusion.process import Process
from diffalign.diffusion.schedule import Schedule

Logprob = Literal["gaussian", "cps"]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Coefficients of the S steps of a schedule, each (S,) float64 on the host."""

    x: Tensor
    pred: Tensor
    std: Tensor
    sqrt_dt: Tensor
    memory: Tensor
    """C, of the change of x0_hat since the step before."""


@dataclass(frozen=True, kw_only=True)
class Forms:
    """x0_hat and eps_hat as x and pred make them, (S,) each."""

    x0: tuple[Tensor, Tensor]
    eps: tuple[Tensor, Tensor]

    def mix(self, on_x0: Tensor, on_eps: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of x and pred in on_x0 x0_hat + on_eps eps_hat."""
        return on_x0 * self.x0[0] + on_eps * self.eps[0], on_x0 * self.x0[1] + on_eps * self.eps[1]


def forms(process: Process, schedule: Schedule) -> Forms:
    """What a native prediction implies at each step of a schedule (x_t = a x0 + s eps, solved).

    Raises:
        ValueError: the model predicts eps and the schedule starts at pure noise, where eps tells no x0.
    """
    a, s = schedule.signal[:-1], schedule.noise[:-1]
    if process.prediction == "eps" and not bool((a > 0).all()):
        raise ValueError("an eps model has no x0_hat at pure noise: start the schedule below it")
    zero, one, scale = torch.zeros_like(a), torch.ones_like(a), a + s
    return {
        "eps": lambda: Forms(x0=(1 / a, -s / a), eps=(zero, one)),
        "x0": lambda: Forms(x0=(zero, one), eps=(1 / s, -a / s)),
        "v": lambda: Forms(x0=(a, -s), eps=(s, a)),
        "flow": lambda: Forms(x0=(1 / scale, -s / scale), eps=(1 / scale, a / scale)),
    }[process.prediction]()


# ---------------------------------------------------------------------- kinds of steps


@dataclass(frozen=True, kw_only=True)
class Transition(ABC):
    """A kind of step."""

    @property
    def scoring(self) -> Logprob:
        """How its log-probability is formed."""
        return "gaussian"

    @abstractmethod
    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """Coefficients of all steps.

        Raises:
            ValueError: the model or schedule does not fit; says what to change.
        """


def preserving(process: Process, schedule: Schedule, std: Tensor) -> Tables:
    """Family I: mean = a' x0_hat + sqrt(s'^2 - std^2) eps_hat; any (S,) std up to s' keeps the marginals."""
    a, s = schedule.signal[1:], schedule.noise[1:]
    left = (s.square() - std.square()).clamp(min=0).sqrt()
    x, pred = forms(process, schedule).mix(a, left)
    return Tables(x=x, pred=pred, std=std, sqrt_dt=torch.ones_like(s), memory=torch.zeros_like(s))


@dataclass(frozen=True, kw_only=True)
class Ddim(Transition):
    """DDIM with eta (arXiv:2010.02502, eq. 16): std = eta s' sqrt(1 - (s' a / (s a'))^2).

    With a^2 + s^2 = 1 that is the published eta sqrt((1-A')/(1-A)) sqrt(1 - A/A'), A = a^2; on rectified flow
    it is the posterior of the same signal-to-noise ratios, as DiffusionNFT's solver has it.
    """

    name: Literal["ddim"] = "ddim"
    eta: float = 1.0
    """Share of the posterior's standard deviation, in [0, 1]; 0 is deterministic."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.eta <= 1:
            raise ValueError(f"transition.eta is {self.eta}; it must be in [0, 1]")

    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """See Transition."""
        (a, a2), (s, s2) = _ends(schedule.signal), _ends(schedule.noise)
        std = self.eta * s2 * (1 - (s2 * a / (s * a2)).square()).clamp(min=0).sqrt()
        return preserving(process, schedule, std)


@dataclass(frozen=True, kw_only=True)
class LiteralDdim(Transition):
    """DDIM's formula with a and s put in literally (LPO, appendix B, for SD3): (s'/s) sqrt(1 - (a/a')^2).

    On VP it is DDIM. With a + s = 1 it exceeds s' at the end of a schedule, from step 15 of 20 at shift 3:
    take ``ddim`` or ``cps`` unless that formula is wanted.
    """

    name: Literal["ddim_literal"] = "ddim_literal"
    eta: float = 1.0
    """Factor of the standard deviation."""
    clamp: bool = False
    """Cut the standard deviation at s' where the formula exceeds it, instead of refusing the schedule."""

    def __post_init__(self) -> None:
        """Check the range."""
        _not_negative("eta", self.eta)

    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """See Transition."""
        (a, a2), (s, s2) = _ends(schedule.signal), _ends(schedule.noise)
        std = self.eta * s2 / s * (1 - (a / a2).square()).clamp(min=0).sqrt()
        over = std > s2 * (1 + 1e-9)
        if not self.clamp and bool(over.any()):
            raise ValueError(
                f"ddim_literal has no real mean from step {int(over.nonzero()[0])} of {len(std)} on (its std "
                "exceeds the noise that may be left): take transition ddim or cps, or set clamp=true"
            )
        return preserving(process, schedule, torch.minimum(std, s2))


@dataclass(frozen=True, kw_only=True)
class Cps(Transition):
    """Coefficient-preserving sampling, std = s' sin(a pi / 2) (Flow-CPS, arXiv:2509.05952)."""

    name: Literal["cps"] = "cps"
    noise_level: float = 0.8
    """a, in [0, 1]."""
    logprob: Logprob = "cps"
    """cps: -<(x' - mean)^2> as released, without variance, finite also where std is 0; or gaussian."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.noise_level <= 1:
            raise ValueError(f"transition.noise_level is {self.noise_level}; it must be in [0, 1] for cps")

    @property
    def scoring(self) -> Logprob:
        """See Transition."""
        return self.logprob

    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """See Transition."""
        std = schedule.noise[1:] * math.sin(self.noise_level * math.pi / 2)
        return preserving(process, schedule, std)


@dataclass(frozen=True, kw_only=True)
class FlowSde(Transition):
    """Flow-GRPO's SDE (arXiv:2505.05470): rate a sqrt(sigma / (1 - sigma)).

    At sigma = 1 the rate takes the second sigma of the schedule under the root's 1 - sigma, so that it stays
    finite: the step depends on the schedule and not on its own two ends only.
    """

    name: Literal["flow_sde"] = "flow_sde"
    noise_level: float = 0.7
    """a, 0 or more."""

    def __post_init__(self) -> None:
        """Check the range."""
        _not_negative("noise_level", self.noise_level)

    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """See Transition."""
        sigma = schedule.noise[:-1]
        below = torch.where(sigma >= 1, schedule.noise[1], sigma)
        return _euler_maruyama(process, schedule, self.noise_level * (sigma / (1 - below)).sqrt(), self.name)


@dataclass(frozen=True, kw_only=True)
class DanceSde(Transition):
    """DanceGRPO's SDE of a constant rate (arXiv:2505.07818)."""

    name: Literal["dance_sde"] = "dance_sde"
    eta: float = 0.3
    """Rate, 0 or more."""

    def __post_init__(self) -> None:
        """Check the range."""
        _not_negative("eta", self.eta)

    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """See Transition."""
        return _euler_maruyama(process, schedule, torch.full_like(schedule.noise[:-1], self.eta), self.name)


def _euler_maruyama(process: Process, schedule: Schedule, rate: Tensor, name: str) -> Tables:
    """Family II: x' = x + [v + rate^2 (x + (1 - sigma) v) / (2 sigma)] dt + rate sqrt(-dt) z.

    (x + (1 - sigma) v) is eps_hat, so the bracket is v less half the squared rate times the score -eps / s.
    """
    if not process.is_flow:
        raise ValueError(f"transition {name} is for rectified flow; take ddim for VP models")
    sigma, dt = schedule.noise[:-1], schedule.noise[1:] - schedule.noise[:-1]
    pull = rate.square() / (2 * sigma)
    root = (-dt).sqrt()
    return Tables(
        x=1 + pull * dt, pred=(1 + pull * (1 - sigma)) * dt, std=rate * root, sqrt_dt=root,
        memory=torch.zeros_like(sigma),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Ode(Transition):
    """The deterministic first-order step: DDIM at eta 0, which on rectified flow is Euler's."""

    name: Literal["ode"] = "ode"

    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """See Transition."""
        return preserving(process, schedule, torch.zeros_like(schedule.noise[1:]))


@dataclass(frozen=True, kw_only=True)
class Dpm2(Transition):
    """Deterministic second-order multistep solver on x0_hat (DPM-Solver++ 2M, arXiv:2211.01095, algorithm 2).

    With lambda = log(a / s) and h its increase: the first-order step plus
    c (x0_hat - x0_hat of the step before), c = (a' - s' a / s) h / (2 h of the step before). First and last
    step, and one after a step from pure noise, are of first order.
    """

    name: Literal["dpm2"] = "dpm2"

    def tables(self, process: Process, schedule: Schedule) -> Tables:
        """See Transition."""
        plain = Ode().tables(process, schedule)
        (a, a2), (s, s2) = _ends(schedule.signal), _ends(schedule.noise)
        height = schedule.signal.log() - schedule.noise.log()  # (S + 1,), infinite at the two ends of flow
        h = height[1:] - height[:-1]
        before = torch.cat([h[:1], h[:-1]])
        second = 0.5 * (a2 - s2 * a / s) * h / before
        usable = h.isfinite() & before.isfinite()
        usable[0] = usable[-1] = False
        memory = torch.where(usable, second, torch.zeros_like(second))
        return Tables(x=plain.x, pred=plain.pred, std=plain.std, sqrt_dt=plain.sqrt_dt, memory=memory)


Transitions = Ddim | LiteralDdim | Cps | FlowSde | DanceSde | Ode | Dpm2
TRANSITIONS: dict[str, type[Transition]] = {
    "ddim": Ddim,
    "ddim_literal": LiteralDdim,
    "cps": Cps,
    "flow_sde": FlowSde,
    "dance_sde": DanceSde,
    "ode": Ode,
    "dpm2": Dpm2,
}


def _not_negative(option: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"transition.{option} is {value}; it must be 0 or more and finite")


def _ends(table: Tensor) -> tuple[Tensor, Tensor]:
    """Where each step starts and where it ends."""
    return table[:-1], table[1:]
