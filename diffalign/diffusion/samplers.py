"""Denoising steps as distributions: the same code samples a step and replays a recorded one.

Every step of every sampler here is linear in the latent and the prediction,

    mean = A x + B pred (+ C (x0_hat - x0_hat of the step before), for the second-order solver)
    x' = mean + std z,  log p(x' | x) = < -(x' - mean)^2 / (2 std^2) - log std - log(2 pi) / 2 >,

with < > the mean over the elements of a latent, as all published code has it: a ratio of two such
probabilities is the likelihood ratio to the power 1 / D. The coefficients are tables over the steps of a
schedule, made once in float64.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.process import Process
from diffalign.diffusion.schedule import Schedule
from diffalign.diffusion.transitions import Ode, Transition, forms


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one denoising step of N latents is."""

    x: Tensor
    """(N, C, ..., H, W) x': the drawn or the recorded next latent."""
    logp: Tensor | None
    """(N,) log-probability of x', a mean over elements; None where the step is deterministic."""
    mean: Tensor
    """(N, C, ..., H, W) differentiable."""
    std: Tensor
    """(N,) standard deviation of x', with sqrt(dt) in it; 0 where the step is deterministic."""
    sqrt_dt: Tensor
    """(N,) sqrt(sigma - sigma') of a step of an SDE, whose rate is std / sqrt_dt; 1 for DDIM and its kin."""
    x0_hat: Tensor
    """(N, C, ..., H, W) the clean latent that the prediction implies."""


class Sampler:
    """A transition on a schedule: draws next latents, and says how probable recorded ones are."""

    def __init__(
        self,
        transition: Transition,
        process: Process,
        schedule: Schedule,
        stochastic: Collection[int] | None = None,
        otherwise: Transition | None = None,
    ) -> None:
        """Make the tables.

        Args:
            transition: kind of the stochastic steps (of all steps, where it is deterministic).
            process: what the model predicts.
            schedule: times.
            stochastic: steps that draw noise; None is all.
            otherwise: kind of the other steps; None is ``Ode()``.

        Raises:
            ValueError: transition, model and schedule do not fit.
        """
        self.schedule, self.scoring = schedule, transition.scoring
        own = transition.tables(process, schedule)
        steps = range(len(schedule))
        drawn = torch.tensor([stochastic is None or i in stochastic for i in steps])
        plain = own if stochastic is None else (otherwise or Ode()).tables(process, schedule)
        self.std = torch.where(drawn, own.std, plain.std)
        # the released CPS log-probability needs no noise, so it exists at a last step without any
        self.scored = drawn & ((self.std > 0) | (self.scoring == "cps"))
        mixed = [torch.where(drawn, getattr(own, k), getattr(plain, k)) for k in ("x", "pred", "memory")]
        x0 = forms(process, schedule).x0
        # (7, S): A, B, C, the two of x0_hat, std, sqrt_dt
        self._table = torch.stack([*mixed, *x0, self.std, own.sqrt_dt])

    @property
    def stochastic(self) -> list[int]:
        """Steps that have a log-probability."""
        return [int(i) for i in self.scored.nonzero().flatten()]

    def step(
        self,
        pred: Tensor,
        x: Tensor,
        i: int | Tensor,
        prev: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        last_x0: Tensor | None = None,
    ) -> Step:
        """One step of N latents from state i to state i + 1, in fp32 at least.

        Args:
            pred: (N, C, ..., H, W) native predictions at x.
            x: (N, C, ..., H, W) latents.
            i: step of all rows, or (N,) int64 steps of the rows on the host.
            prev: recorded x' whose log-probability is asked; None draws x'.
            noise: (N, C, ..., H, W) standard normal numbers to draw x' with.
            last_x0: x0_hat of the step before, for the second-order solver.

        Raises:
            ValueError: noise is needed to draw x', or last_x0 by a second-order step; or some rows are of
                deterministic steps and others not.
        """
        wide = torch.promote_types(torch.float32, x.dtype)
        pred, x = pred.to(wide), x.to(wide)
        index = torch.full((len(x),), i) if isinstance(i, int) else i
        on_x, on_pred, memory, x0_x, x0_pred, std, root = send(self._table[:, index].to(wide), x.device)
        x0_hat = _wide(x0_x, x) * x + _wide(x0_pred, x) * pred
        mean = _wide(on_x, x) * x + _wide(on_pred, x) * pred
        if bool((self._table[2, index] != 0).any()):
            if last_x0 is None:
                raise ValueError("a second-order step needs last_x0, the x0_hat of the step before")
            mean = mean + _wide(memory, x) * (x0_hat - last_x0.to(wide))
        drawn = self._draw(mean, std, index, noise) if prev is None else prev.to(wide)
        logp = self.logp(drawn, mean, i) if bool(self.scored[index].any()) else None
        return Step(x=drawn, logp=logp, mean=mean, std=std, sqrt_dt=root, x0_hat=x0_hat)

    def logp(self, x_next: Tensor, mean: Tensor, i: int | Tensor) -> Tensor:
        """(..., N) log-probability of recorded (..., N, C, ..., H, W) next latents.

        Candidates of one latent share the mean: stack them in front, and the network is asked once.

        Raises:
            ValueError: a row is of a deterministic step.
        """
        index = torch.full((mean.shape[0],), i) if isinstance(i, int) else i
        scored = self.scored[index]
        if not bool(scored.all()):
            raise ValueError(
                f"steps {sorted(set(index[~scored].tolist()))} are deterministic: no log-probability; "
                f"replay only those of {self.stochastic}"
            )
        inner = tuple(range(-(mean.ndim - 1), 0))
        square: Tensor = (x_next.detach().to(mean.dtype) - mean).square().mean(inner)  # (..., N)
        if self.scoring == "cps":
            return -square
        std = self.std[index]
        both = torch.stack([0.5 / std.square(), std.log() + 0.5 * math.log(2 * math.pi)])
        both = send(both.to(mean.dtype), mean.device)  # (2, N): on the square, and constant
        return -both[0] * square - both[1]

    def _draw(self, mean: Tensor, std: Tensor, index: Tensor, noise: Tensor | None) -> Tensor:
        """(N, C, ..., H, W) x', without gradient."""
        if not bool((self.std[index] > 0).any()):
            return mean.detach()
        if noise is None:
            raise ValueError("a stochastic step needs noise to draw x', or prev to replay it")
        return mean.detach() + _wide(std, mean) * noise.to(mean.dtype)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))
