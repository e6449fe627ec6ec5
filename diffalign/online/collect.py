"""An iteration's harvest: pictures of the policy, their rewards, and what these make of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffalign.device import send
from diffalign.diffusion.rollout import Guided, Recorded, Trajectories, latent_shape, rollout
from diffalign.objectives.base import State
from diffalign.objectives.combine import advantages_of
from diffalign.online.candidates import CandidateJudge
from diffalign.online.config import OnlineConfig
from diffalign.online.groups import Groups, Planned, share_of
from diffalign.online.rewards import Background, Made, RewardError, RewardLog, load_reward
from diffalign.online.weights import ParameterSets
from diffalign.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Harvest:
    """Pictures of an iteration on this process, n of them, whose prompts are the P of all processes."""

    guided: Guided
    """Predicts for the P prompts; see ``prompt``."""
    planned: tuple[Planned, ...]
    run: Trajectories
    prompt: Tensor
    """(n,) int64 place of each picture's prompt among the P; also its group."""
    image: Tensor
    """(n,) int64 place of each picture among those of all processes."""
    rewards: Tensor | None
    """(n, K) float64; None where candidates were judged instead."""
    advantage: Tensor | None
    """(n,) float32."""
    keep: Tensor
    """(n,) bool, False at the pictures of a prompt with a reward that is not finite."""
    figures: dict[str, float]
    """What is logged of the whole iteration."""


class Collector:
    """Makes an iteration's pictures and has them judged."""

    def __init__(
        self, config: OnlineConfig, policy: Policy, groups: Groups, accelerator: Accelerator, log: RewardLog
    ) -> None:
        """Load all scorers.

        Raises:
            ValueError: a scorer cannot be used as the recipe says.
        """
        self.config, self.policy, self.groups, self.accelerator = config, policy, groups, accelerator
        self.judge = None if config.judge is None else CandidateJudge.load(config.judge, policy)
        loaded = {r.scorer: load_reward(r, policy) for r in config.rewards}
        if len(loaded) < len(config.rewards):
            raise ValueError("rewards name a scorer twice; give each once, with its whole weight")
        self.log = log
        self.side = config.groups.side or policy.side
        self.shape = latent_shape(policy, self.side)
        self.background = Background(loaded, log, config.patience) if loaded else None
        weights = tuple(r.weight for r in config.rewards)
        self.combination = replace(config.combination, weights=weights)

    def __call__(self, iteration: int, sets: ParameterSets, state: State) -> Harvest:
        """Pictures, rewards and advantages of an iteration.

        Raises:
            RewardError: on all processes, where a reward of one of them failed.
        """
        every = self.groups.planned(iteration)
        own = share_of(len(every), self.accelerator.process_index, self.accelerator.num_processes)
        guided = self._guided([p.prompt for p in every[:: self.config.groups.images]])
        self.log.open(iteration)
        planned = [every[i] for i in own]
        batches = self._batches(planned)
        with sets.of_sampling(), self.accelerator.autocast():
            runs = [self._run([planned[i] for i in some], guided, iteration) for some in batches]
        back = torch.tensor([i for some in batches for i in some]).argsort()  # as planned
        rewards = self._rewards(len(runs))
        harvest = Harvest(
            guided=guided, planned=tuple(planned), run=merged(runs, back), rewards=None, advantage=None,
            prompt=torch.tensor([p.group for p in planned]), image=torch.tensor(list(own)),
            keep=torch.ones(len(planned), dtype=torch.bool), figures={},
        )  # fmt: skip
        if rewards is None:
            return harvest
        return self._judged(replace(harvest, rewards=rewards[back]), every, state)

    # ------------------------------------------------------------------ pictures

    def _guided(self, prompts: Sequence[str]) -> Guided:
        """Predictions for the prompts of all processes."""
        policy, scale = self.policy, self.config.rollout.guidance
        cond = self._on_device(policy.encode_prompts(prompts))
        side = self.side
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(prompts), device=policy.device)
        if scale == 1:
            return Guided(policy=policy, cond=cond, sizes=sizes)
        empty = self._on_device(policy.encode_prompts([""] * len(prompts)))
        return Guided(policy=policy, cond=cond, uncond=empty, scale=scale, sizes=sizes)

    def _on_device(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {k: send(v, self.policy.device) for k, v in self.policy.collate_prompts(rows).items()}

    def _batches(self, planned: Sequence[Planned]) -> list[list[int]]:
        """Places of the pictures that are made at once: of one maker, and whole groups where a reward
        compares them.
        """
        size, images = self.config.groups.batch, self.config.groups.images
        if any(r.among == "group" for r in self.config.rewards):
            size = max(1, size // images) * images
        kinds = [[i for i, p in enumerate(planned) if p.of_reference == kind] for kind in (False, True)]
        return [own[i : i + size] for own in kinds for i in range(0, len(own), size)]

    def _run(self, some: Sequence[Planned], guided: Guided, iteration: int) -> Trajectories:
        """A recorded run, handed to the rewards."""
        own = guided.rows(torch.tensor([p.group for p in some], device=self.policy.device))
        score = None if self.judge is None else self.judge.of(own, [p.prompt for p in some])
        with self.policy.reference() if some[0].of_reference else nullcontext():
            run = rollout(
                own, [p.seed for p in some], self.config.rollout, starts=[p.start for p in some],
                shape=self.shape, iteration=iteration, seed=self.config.seed, score=score,
            )  # fmt: skip
        if self.background is not None:
            self.background.submit(self._made(run, some))
        return run

    @torch.no_grad()
    def _made(self, run: Trajectories, some: Sequence[Planned]) -> Made:
        pictures = ((self.policy.decode(run.x0.float()) + 1) / 2).clamp(0, 1)
        return Made(latents=run.x0, pictures=pictures, prompts=tuple(p.prompt for p in some))

    # ------------------------------------------------------------------ rewards

    def _rewards(self, batches: int) -> Tensor | None:
        """(n, K) rewards of this process; a failure of one process is an error on all."""
        if self.background is None:
            return None
        try:
            found: Tensor | RewardError = self.background.collect(batches)
        except RewardError as error:
            found = error
        told = [str(found) if isinstance(found, RewardError) else ""]
        failed = [(i, text) for i, text in enumerate(gather_object(told)) if text]
        if failed:
            rank, text = failed[0]
            raise RewardError(text if self.accelerator.num_processes == 1 else f"process {rank}: {text}")
        assert isinstance(found, Tensor)
        return found

    def _judged(self, harvest: Harvest, every: Sequence[Planned], state: State) -> Harvest:
        """With advantages, which are those that one process would have found."""
        assert harvest.rewards is not None
        rewards = torch.tensor(gather_object(harvest.rewards.tolist()), dtype=torch.float64)
        group = torch.tensor([p.number for p in every])
        found = advantages_of(rewards, group, self.config.advantage, self.combination, state=state)
        if not bool(found.keep.any()):
            raise RewardError("no prompt of the iteration has finite rewards: look at the scorers")
        means = rewards.nanmean(0).tolist()
        figures = {f"reward/{r.scorer}": v for r, v in zip(self.config.rewards, means, strict=True)}
        return replace(
            harvest, advantage=found.value[harvest.image].float(), keep=found.keep[harvest.image],
            figures=figures | found.report(group) | spread(rewards, self.config.groups.images),
        )  # fmt: skip


def spread(rewards: Tensor, images: int) -> dict[str, float]:
    """Mean standard deviation of the first reward within a prompt."""
    first = rewards[:, 0].view(-1, images)
    return {"reward_spread": float(first.std(1, unbiased=False).nanmean())}


def merged(runs: Sequence[Trajectories], order: Tensor) -> Trajectories:
    """Recorded runs of one iteration as one, its pictures in another ``order``."""
    first = runs[0]
    records = [_merged_step(same, order) for same in zip(*[r.records for r in runs], strict=True)]
    return replace(first, x0=_put([r.x0 for r in runs], order), records=tuple(records))


def _merged_step(same: Sequence[Recorded], order: Tensor) -> Recorded:
    """One step of all pictures."""
    return Recorded(
        step=same[0].step,
        x=_put([r.x for r in same], order),
        x_next=_put([r.x_next for r in same], order),
        logp=_put([r.logp for r in same], order),
        mean=_maybe([r.mean for r in same], order, 0),
        candidates=_maybe([r.candidates for r in same], order, 1),
        scores=_maybe([r.scores for r in same], order, 1),
    )


def _put(values: Sequence[Tensor], order: Tensor, dim: int = 0) -> Tensor:
    whole = torch.cat(list(values), dim)
    return whole.index_select(dim, order.to(whole.device))


def _maybe(values: Sequence[Tensor | None], order: Tensor, dim: int) -> Tensor | None:
    there = [v for v in values if v is not None]
    return _put(there, order, dim) if len(there) == len(values) else None
