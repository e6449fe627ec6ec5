"""Harvests that tests make by hand, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from diffalign.diffusion.process import Process
from diffalign.diffusion.rollout import Guided, Recorded, Trajectories
from diffalign.diffusion.samplers import Sampler
from diffalign.diffusion.schedule import flow_schedule, vp_schedule
from diffalign.diffusion.transitions import Ddim
from diffalign.online.collect import Harvest
from diffalign.online.groups import Planned
from diffalign.online.rewards import Made

FLOW = Process(prediction="flow")
VP = Process(prediction="eps", alphas_cumprod=torch.linspace(0.999, 0.002, 1000))
SHAPE = (2, 2, 2)


def sampler_of(process: Process) -> Sampler:
    """Four steps, all but the last stochastic."""
    if process.is_flow:
        schedule = flow_schedule([0.9, 0.7, 0.4, 0.2, 0.0])
    else:
        schedule = vp_schedule(process, [751, 501, 251, 1], 250)
    return Sampler(Ddim(), process, schedule, [0, 1, 2])


def latents(*values: float) -> Tensor:
    """(n, 2, 2, 2) latents that are one number each."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, *SHAPE).clone()


def record(step: int, n: int, scores: Sequence[Sequence[float]] | None = None) -> Recorded:
    """A step whose latents tell what they are: picture + 10 step, their next ones half more; candidate k of
    the K that are given scores is k / 4 more.
    """
    x = latents(*(i + 10.0 * step for i in range(n)))
    table = None if scores is None else torch.tensor(scores)  # (K, n)
    several = None if table is None else torch.stack([x + k / 4 for k in range(len(table))])
    return Recorded(
        step=step, x=x, x_next=x + 0.5, logp=-torch.arange(n) - 10.0 * step, mean=x + 0.25,
        candidates=several, scores=table,
    )  # fmt: skip


def harvest(
    advantage: Sequence[float],
    prompts: Sequence[int],
    process: Process = FLOW,
    rewards: Tensor | None = None,
    keep: Sequence[bool] | None = None,
    records: Sequence[Recorded] | None = None,
    texts: Sequence[str] = ("a", "b", "c", "d"),
) -> Harvest:
    """Pictures of prompts, whose recorded steps are three."""
    n = len(prompts)
    planned = [
        Planned(prompt=texts[p], number=p, group=p, seed=100 + i, start=100 + i, of_reference=False)
        for i, p in enumerate(prompts)
    ]
    policy: Any = SimpleNamespace(process=process)
    value = torch.tensor(advantage)
    steps = tuple(records) if records is not None else tuple(record(k, n) for k in range(3))
    return Harvest(
        guided=Guided(policy=policy, cond={}), planned=tuple(planned), prompt=torch.tensor(prompts),
        run=Trajectories(
            sampler=sampler_of(process), guidance=1.0, x0=latents(*range(n)), records=steps
        ),
        image=torch.arange(n) + 50, rewards=value.double()[:, None] if rewards is None else rewards,
        advantage=value, keep=torch.tensor(keep or [True] * n), figures={},
    )  # fmt: skip


def made(*values: float, prompts: Sequence[str] = (), group: Sequence[int] = ()) -> Made:
    """Pictures of one grey each, and latents of the same number."""
    pictures = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    return Made(
        latents=latents(*values), pictures=pictures, prompts=tuple(prompts or ["a"] * len(values)),
        group=tuple(group or [0] * len(values)),
    )  # fmt: skip
