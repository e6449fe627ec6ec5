"""Objectives on the forward process: the policy's own pictures, noised again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.corrupt import draw_seed, seeded_noise, seeded_uniform
from diffalign.diffusion.timesteps import Uniform
from diffalign.objectives.base import Denoised, Predictions
from diffalign.objectives.forward_process import mean_square
from diffalign.online.blocks import NoiseConfig
from diffalign.online.collect import Harvest
from diffalign.online.config import OnlineConfig
from diffalign.online.tables import NoisedTable
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy

OLD = frozenset({"old_pred", "old_error"})
"""What predictions of the old policy give."""
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Members:
    """Pictures of comparison units, M of them; a picture may be in several."""

    image: Tensor
    """(M,) int64 place among the pictures of this process."""
    unit: Tensor
    """(M,) int64."""
    sharing: Tensor
    """(M,) int64; with ``per`` group, members of the same number share t and noise."""
    role: Tensor
    """(M,) int64."""
    score: Tensor
    """(M,) float32."""


def noised_table(harvest: Harvest, config: OnlineConfig) -> NoisedTable:
    """Every picture at every draw of time and noise; the score is its advantage."""
    assert harvest.advantage is not None
    places = torch.arange(len(harvest.planned))
    whole = config.objective.whole_groups
    every = Members(
        image=places, unit=harvest.prompt if whole else places, sharing=harvest.prompt,
        role=torch.zeros_like(places), score=harvest.advantage,
    )  # fmt: skip
    return table_of(every, harvest, config.noise)


def table_of(members: Members, harvest: Harvest, noise: NoiseConfig, paired: bool = False) -> NoisedTable:
    """The members at each draw, those of a unit together.

    Args:
        members: M pictures.
        harvest: the iteration.
        noise: see NoiseConfig.
        paired: members that share (a pair or a list) have one t in any case, and one noise where ``per`` is
            group.
    """
    m, d = len(members.image), noise.draws
    image, unit, sharing = (v.repeat(d) for v in (members.image, members.unit, members.sharing))
    draw = torch.arange(d).repeat_interleave(m)
    number = unit * d + draw
    shared = noise.per == "group"
    owner = _seeds(harvest, image, sharing if shared or paired else None)
    t = draw_times([(seed, k) for seed, k in zip(owner, draw.tolist(), strict=True)], noise, harvest)
    if shared:  # one noise at all times
        seeds = [draw_seed("online noise", seed) for seed in owner]
    else:
        own = _seeds(harvest, image, None)
        seeds = [draw_seed("online noise", seed, k) for seed, k in zip(own, draw.tolist(), strict=True)]
    return NoisedTable(
        unit=number, prompt=harvest.prompt[image], weight=harvest.keep[image].float(),
        x0=harvest.run.x0.cpu()[image], t=t, noise=torch.tensor(seeds, dtype=torch.long), group=number,
        role=members.role.repeat(d), score=members.score.repeat(d),
    )  # fmt: skip


def draw_times(draws: Sequence[tuple[int, int]], noise: NoiseConfig, harvest: Harvest) -> Tensor:
    """(N,) times of N (seed, draw): the k-th draw falls into the k-th part of the range."""
    u = seeded_uniform([draw_seed("online t", *draw) for draw in draws])
    place = torch.tensor([k for _, k in draws])
    share = Uniform(low=noise.low, high=noise.high)
    t = share.times((place + u) / noise.draws, harvest.guided.policy.process)
    if not noise.scheduled:
        return t
    times = harvest.run.sampler.schedule.times
    return times[(t[:, None].double() - times.double()).abs().argmin(1)]


def _seeds(harvest: Harvest, image: Tensor, sharing: Tensor | None) -> list[int]:
    """Seed of each row: of its picture, or of the first of the pictures that it shares with."""
    seeds = [harvest.planned[i].seed for i in image.tolist()]
    if sharing is None:
        return seeds
    first: dict[int, int] = {}
    for number, seed in zip(sharing.tolist(), seeds, strict=True):
        first.setdefault(number, seed)
    return [draw_seed("unit", first[number]) for number in sharing.tolist()]


class NoisedPass:
    """Puts batches of noised pictures together, with whatever predictions the objective declares."""

    def __init__(self, config: OnlineConfig, policy: Policy, reference: Context) -> None:
        """``reference``: context in which the policy is what it is held to."""
        objective = config.objective
        self.needs, self.policy, self.reference = objective.needs, policy, reference
        self.guidance = objective.guidance_of_reference()
        self.needs_reference = objective.needs_reference or "ref_pred" in objective.needs

    def frame(self, table: NoisedTable) -> Denoised:
        """The batch without what the network must be asked for; units and weights can be told from it."""
        device = self.policy.device
        group = table.group.unique(return_inverse=True)[1]
        return Denoised(
            error=send(torch.zeros(len(table)), device), ref_error=None, group=send(group, device),
            role=send(table.role, device), t=send(table.t, device), score=send(table.score, device),
            weight=send(table.weight, device), unit_count=int(group.max()) + 1,
        )  # fmt: skip

    def __call__(self, table: NoisedTable, harvest: Harvest, sets: ParameterSets) -> Denoised:
        """The batch, differentiable in the policy."""
        # other weights first: they are put into the very tensors that the policy's graph will hold
        old = self._under(sets.of_old(), table, harvest) if self.needs & OLD else None
        ref_pred = self._of_reference(table, harvest) if self.needs_reference else None
        anchor = self._under(sets.of_anchor(), table, harvest) if "ema_pred" in self.needs else None
        pred, x_t, target = self._predict(table, harvest)
        batch, extra = self.frame(table), dict[str, Tensor]()
        batch.error = mean_square(pred - target)
        if old is not None:
            extra["old_error"] = mean_square(old - target)
        if anchor is not None:
            extra["ema_pred"] = anchor
        if "x0_slope" in self.needs:
            extra["x0_slope"] = self.policy.process.weight(batch.t, "x0_equivalent").sqrt()
        batch.extra = extra
        if ref_pred is not None and self.guidance == 1:
            batch.ref_error = mean_square(ref_pred - target)
        x0 = send(table.x0, pred.device)
        batch.tensors = Predictions(pred=pred, ref_pred=ref_pred, target=target, x_t=x_t, x0=x0, old_pred=old)
        return batch

    def plain(self, table: NoisedTable, harvest: Harvest) -> Tensor:
        """(N, C, h, w) predictions on these rows."""
        return self._predict(table, harvest)[0]

    def _under(self, weights: AbstractContextManager[Any], table: NoisedTable, harvest: Harvest) -> Tensor:
        """Predictions on these very rows under other weights, without gradient."""
        with torch.no_grad(), weights:
            return self._predict(table, harvest)[0]

    def _of_reference(self, table: NoisedTable, harvest: Harvest) -> Tensor:
        """Predictions of the reference, with the guidance that the objective asks for."""
        with torch.no_grad(), self.reference():
            return self._predict(table, harvest, self.guidance)[0]

    def _predict(
        self, table: NoisedTable, harvest: Harvest, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Native prediction, x_t and target, each (N, C, h, w) in fp32."""
        device, process = self.policy.device, self.policy.process
        x0, t = send(table.x0, device).float(), send(table.t, device)
        noise = seeded_noise(table.noise.tolist(), x0)
        x_t, target = process.add_noise(x0, noise, t), process.target(x0, noise, t)
        guided = replace(harvest.guided, scale=guidance).rows(send(table.prompt, device))
        return guided(x_t, t), x_t, target
