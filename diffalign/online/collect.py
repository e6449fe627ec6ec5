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
from diffalign.diffusion.rollout import Guided, Recorded, Trajectories, latent_shape, rollout, sampler_of
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
            ValueError: a scorer cannot be used as the recipe says, or the rollout's steps not on this model.
        """
        sampler_of(policy, config.rollout)
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
        guided = self._guided([p.asked for p in every[:: self.config.groups.images]])
        self.log.open(iteration)
        planned = [every[i] for i in own]
        chunks, runs = self._chunks(planned), list[Trajectories]()
        with sets.of_sampling():
            for chunk in chunks:
                made = [self._run([planned[i] for i in some], guided, iteration) for some in chunk]
                self._hand_over(made, [planned[i] for some in chunk for i in some])
                runs += made
        back = torch.tensor([i for chunk in chunks for some in chunk for i in some]).argsort()  # as planned
        rewards = self._rewards(len(chunks))
        harvest = Harvest(
            guided=guided, planned=tuple(planned), run=merged(runs, back), rewards=None, advantage=None,
            prompt=torch.tensor([p.group for p in planned]), image=torch.tensor(list(own)),
            keep=torch.ones(len(planned), dtype=torch.bool), figures={},
        )  # fmt: skip
        harvest = replace(harvest, figures=self._scores(harvest))
        if rewards is None:
            return harvest
        return self._judged(replace(harvest, rewards=rewards[back]), every, state)

    # ------------------------------------------------------------------ pictures

    def _guided(self, prompts: Sequence[str]) -> Guided:
        """Predictions for the prompts of all processes."""
        policy, scale = self.policy, self.config.rollout.guidance
        cond = self._on_device(policy.encode_prompts(prompts))
        side = self.side  # of whole pictures, without a crop; only SDXL is told
        sizes = torch.tensor([[side, side, 0, 0, side, side]] * len(prompts), device=policy.device)
        if scale == 1 and self.config.objective.guidance_of_reference() == 1:
            return Guided(policy=policy, cond=cond, sizes=sizes)
        empty = self._on_device(policy.encode_prompts([""] * len(prompts)))
        return Guided(policy=policy, cond=cond, uncond=empty, scale=scale, sizes=sizes)

    def _on_device(self, rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {k: send(v, self.policy.device) for k, v in self.policy.collate_prompts(rows).items()}

    def _chunks(self, planned: Sequence[Planned]) -> list[list[list[int]]]:
        """Places of the pictures that are judged together, by batches that are made at once: whole groups
        where a reward compares them, whoever made them, else each batch for itself.
        """
        everything, images = range(len(planned)), self.config.groups.images
        if not any(r.compares for r in self.config.rewards):
            return [[some] for some in self._batches(everything, planned)]
        size = max(1, self.config.groups.batch // images) * images
        return [self._batches(everything[i : i + size], planned) for i in everything[::size]]

    def _batches(self, places: Sequence[int], planned: Sequence[Planned]) -> list[list[int]]:
        """The places in batches of one maker each."""
        size = self.config.groups.batch
        kinds = [[i for i in places if planned[i].of_reference == kind] for kind in (False, True)]
        return [own[i : i + size] for own in kinds for i in range(0, len(own), size)]

    def _run(self, some: Sequence[Planned], guided: Guided, iteration: int) -> Trajectories:
        """A recorded run."""
        own = guided.rows(torch.tensor([p.group for p in some], device=self.policy.device))
        score = None if self.judge is None else self.judge.of(own, [p.prompt for p in some])
        with self.policy.reference() if some[0].of_reference else nullcontext():
            return rollout(
                own, [p.seed for p in some], self.config.rollout, starts=[p.start for p in some],
                shape=self.shape, iteration=iteration, seed=self.config.seed, score=score,
            )  # fmt: skip

    @torch.no_grad()
    def _hand_over(self, runs: Sequence[Trajectories], some: Sequence[Planned]) -> None:
        """Ask for the rewards of pictures; they are scored while the next ones are made."""
        if self.background is None:
            return
        x0, pictures = [run.x0.float() for run in runs], None
        if any(r.looks == "pictures" for r in self.config.rewards):
            pictures = torch.cat([((self.policy.decode(x) + 1) / 2).clamp(0, 1) for x in x0])
        self.background.submit(Made(
            latents=torch.cat(x0), pictures=pictures, prompts=tuple(p.prompt for p in some),
            group=tuple(p.group for p in some),
        ))  # fmt: skip

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

    def _scores(self, harvest: Harvest) -> dict[str, float]:
        """What the judge of candidates says of them: where there are no rewards, this is what rises."""
        judge = self.config.judge
        return {} if judge is None else {f"judge/{judge.scorer}": mean_score(harvest)}

    def _judged(self, harvest: Harvest, every: Sequence[Planned], state: State) -> Harvest:
        """With advantages, which are those that one process would have found."""
        assert harvest.rewards is not None
        rewards = torch.tensor(gather_object(harvest.rewards.tolist()), dtype=torch.float64)
        group = torch.tensor([p.number for p in every])
        condition = torch.tensor([p.condition for p in every])
        found = advantages_of(
            rewards, group, self.config.advantage, self.combination, condition=condition, state=state
        )
        if not bool(found.keep.any()):
            raise RewardError("no prompt of the iteration has finite rewards: look at the scorers")
        means = rewards.nanmean(0).tolist()
        figures = {f"reward/{r.scorer}": v for r, v in zip(self.config.rewards, means, strict=True)}
        figures |= found.report(group) | spread(rewards, self.config.groups.images)
        return replace(
            harvest, advantage=found.value[harvest.image].float(), keep=found.keep[harvest.image],
            figures=harvest.figures | figures,
        )  # fmt: skip


def mean_score(harvest: Harvest) -> float:
    """Mean score of all candidates of all processes; NaN where none is finite."""
    scores = [r.scores.flatten().double().cpu() for r in harvest.run.records if r.scores is not None]
    own = torch.cat(scores) if scores else torch.zeros(0, dtype=torch.float64)
    own = own[own.isfinite()]
    told: list[tuple[float, int]] = gather_object([(float(own.sum()), len(own))])
    count = sum(n for _, n in told)
    return sum(s for s, _ in told) / count if count else float("nan")


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
