"""Objectives on recorded steps: which steps are trained on, and what their batches are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.corrupt import draw_seed
from diffalign.diffusion.rollout import Recorded, replay, times_of
from diffalign.diffusion.samplers import Step
from diffalign.objectives.forward_process import mean_square
from diffalign.objectives.mining import mine
from diffalign.objectives.steps import Steps
from diffalign.online.collect import Harvest
from diffalign.online.config import OnlineConfig
from diffalign.online.noised import Context
from diffalign.online.tables import StepTable, joined
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy

REFERENCE = frozenset({"ref_logp", "ref_drift"})
"""What a replay under the reference gives."""


def step_table(harvest: Harvest, config: OnlineConfig) -> StepTable:
    """The rows of an iteration on this process.

    Pairs of candidates where the rollout branched, pairs of whole trajectories for other objectives on pairs
    (D3PO), and every step for the rest.
    """
    if config.mines:
        return mined_pairs(harvest, config)
    if config.objective.unit == "pair":
        return trajectory_pairs(harvest, config)
    return every_step(harvest, config)


def every_step(harvest: Harvest, config: OnlineConfig) -> StepTable:
    """Steps of all pictures, a random share of each one's."""
    records, n = harvest.run.records, len(harvest.planned)
    chosen = [(i, k) for i in range(n) for k in _steps(harvest, i, config)]
    image, place = torch.tensor(chosen).unbind(1)
    whole = config.objective.whole_groups or config.objective.unit == "group"
    unit = harvest.prompt[image] if whole else torch.arange(len(chosen))
    return _table(harvest, records, image, place, unit, torch.zeros(len(chosen), dtype=torch.long))


def trajectory_pairs(harvest: Harvest, config: OnlineConfig) -> StepTable:
    """The best and the worst picture of each prompt, step by step; a pair of equals is left out.

    Of the steps a random share of each pair's.
    """
    assert harvest.advantage is not None
    couples = []
    for group in harvest.prompt.unique():
        own = (harvest.prompt == group).nonzero().flatten()
        high, low = own[harvest.advantage[own].argmax()], own[harvest.advantage[own].argmin()]
        if harvest.advantage[high] > harvest.advantage[low]:
            couples.append((int(high), int(low)))
    rows = [
        (image, k, role)
        for pair in couples
        for k in _steps(harvest, pair[0], config)
        for image, role in zip(pair, (1, -1), strict=True)
    ]
    image, place, role = torch.tensor(rows, dtype=torch.long).view(-1, 3).unbind(1)
    return _table(harvest, harvest.run.records, image, place, torch.arange(len(rows)) // 2, role)


def mined_pairs(harvest: Harvest, config: OnlineConfig) -> StepTable:
    """Best and worst candidate of each step of each picture, where they are far enough apart."""
    assert config.judge is not None
    threshold = config.judge.threshold.table(harvest.run.sampler.std)
    parts = [
        _mined(harvest, r, float(threshold[r.step])) for r in harvest.run.records if r.scores is not None
    ]
    return joined(parts)


def _mined(harvest: Harvest, record: Recorded, threshold: float) -> StepTable:
    """Pairs of one step."""
    assert record.scores is not None
    assert record.candidates is not None
    found = mine(record.scores.float().cpu(), threshold)
    row = found.keep.nonzero().flatten()
    kept = record.candidates.cpu()
    sides = torch.stack([kept[found.win[row], row], kept[found.lose[row], row]], 1)  # (P, 2, C, h, w)
    return StepTable(
        unit=torch.arange(len(row)), prompt=harvest.prompt[row], weight=torch.ones(len(row)),
        x=record.x.cpu()[row], sides=sides, step=torch.full((len(row),), record.step),
        image=harvest.image[row], role=torch.zeros(len(row), dtype=torch.long),
    )  # fmt: skip


def _table(
    harvest: Harvest, records: Sequence[Recorded], image: Tensor, place: Tensor, unit: Tensor, role: Tensor
) -> StepTable:
    """Rows of recorded steps by (N,) pictures and places in ``records``."""

    def put(name: str) -> Tensor:
        stacked = torch.stack([getattr(r, name).cpu() for r in records])
        return stacked[place, image]

    means = records[0].mean is not None
    return StepTable(
        unit=unit, prompt=harvest.prompt[image], weight=harvest.keep[image].float(), x=put("x"),
        sides=put("x_next")[:, None], step=torch.tensor([r.step for r in records])[place],
        image=harvest.image[image], role=role, old_logp=put("logp"), mean=put("mean") if means else None,
        advantage=None if harvest.advantage is None else harvest.advantage[image],
    )  # fmt: skip


def _steps(harvest: Harvest, image: int, config: OnlineConfig) -> list[int]:
    """Places of a picture's recorded steps that are trained on."""
    count = len(harvest.run.records)
    wanted = max(1, round(config.update.step_share * count))
    return _some(count, wanted, harvest.planned[image].seed)


def _some(count: int, wanted: int, seed: int) -> list[int]:
    """``wanted`` of ``count`` places, in order, by a seed."""
    generator = torch.Generator().manual_seed(draw_seed("steps of an image", seed))
    order: list[int] = torch.randperm(count, generator=generator)[:wanted].tolist()
    return sorted(order)


class StepPass:
    """Puts batches of recorded steps together: one pass of the policy, one of the reference."""

    def __init__(self, config: OnlineConfig, policy: Policy, reference: Context) -> None:
        """``reference``: context in which the policy is what it is held to."""
        self.needs, self.policy, self.reference = config.objective.needs, policy, reference
        self.recompute = config.update.recompute_old

    def frame(self, table: StepTable) -> Steps:
        """The batch without what the network must be asked for; units and weights can be told from it."""
        device, n = self.policy.device, len(table)
        mined = table.sides.shape[1] == 2
        group = torch.arange(n).repeat(2) if mined else table.unit.unique(return_inverse=True)[1]
        role = torch.tensor([1, -1]).repeat_interleave(n) if mined else table.role
        copies = 2 if mined else 1
        return Steps(
            logp=send(torch.zeros(len(group)), device), group=send(group, device), role=send(role, device),
            advantage=_sent(table.advantage, device), old_logp=_sent(table.old_logp, device),
            step=send(table.step.repeat(copies), device), image=send(table.image.repeat(copies), device),
            weight=send(table.weight.repeat(copies), device),
            unit_count=n if mined else len(table.unit.unique()),
        )  # fmt: skip

    def __call__(self, table: StepTable, harvest: Harvest, sets: ParameterSets) -> Steps:
        """The batch, differentiable in the policy."""
        table = self._recomputed(table, harvest, sets) if self.recompute else table
        # the reference first: its weights may be put into the very tensors that the policy's graph will hold
        ref = self._of_reference(table, harvest) if self.needs & REFERENCE else None
        ref_pred = self._ref_pred(table, harvest) if "pred_drift" in self.needs else None
        own = self._replayed(table, harvest)
        batch = replace(
            self.frame(table), logp=self._logp(own, table, harvest), std=own.std, sqrt_dt=own.sqrt_dt
        )
        if "drift" in self.needs:
            assert table.mean is not None
            batch.drift = mean_square(own.mean - send(table.mean, own.mean.device))
        if ref is not None:
            batch.ref_logp = self._logp(ref, table, harvest)
            batch.ref_drift = mean_square(own.mean - ref.mean)
        if ref_pred is not None:
            batch.pred_drift = mean_square(self.plain(table, harvest) - ref_pred)
        return batch

    def plain(self, table: StepTable, harvest: Harvest) -> Tensor:
        """(N, C, h, w) predictions where the steps start, without guidance."""
        device = self.policy.device
        plain = replace(harvest.guided, uncond=None, scale=1.0).rows(send(table.prompt, device))
        x = send(table.x, device).float()
        return plain(x, times_of(harvest.run.sampler, table.step, len(x), device))

    def _of_reference(self, table: StepTable, harvest: Harvest) -> Step:
        with self.reference(), torch.no_grad():
            return self._replayed(table, harvest)

    def _ref_pred(self, table: StepTable, harvest: Harvest) -> Tensor:
        with self.reference(), torch.no_grad():
            return self.plain(table, harvest)

    def _recomputed(self, table: StepTable, harvest: Harvest, sets: ParameterSets) -> StepTable:
        """With log-probabilities and means of the policy that made the rollout, on these very rows."""
        with torch.no_grad(), sets.of_behaviour():
            own = self._replayed(table, harvest)
        assert own.logp is not None
        return replace(table, old_logp=own.logp.cpu(), mean=None if table.mean is None else own.mean.cpu())

    def _replayed(self, table: StepTable, harvest: Harvest) -> Step:
        device = self.policy.device
        guided = harvest.guided.rows(send(table.prompt, device))
        x, after = send(table.x, device), send(table.sides[:, 0], device)
        return replay(guided, harvest.run, x, after, table.step)

    def _logp(self, step: Step, table: StepTable, harvest: Harvest) -> Tensor:
        """(S N,) log-probabilities of the sides: the mean is the same for winner and loser."""
        sides = send(table.sides, step.mean.device).transpose(0, 1)  # (S, N, C, h, w)
        return harvest.run.sampler.logp(sides, step.mean, table.step).flatten()


def _sent(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else send(value, device)
