"""Sampling runs that are recorded, and replayed with gradient on the very same arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffalign.device import send
from diffalign.diffusion.corrupt import draw_seed, seeded_noise
from diffalign.diffusion.rollout_options import Branching, Recorder, RolloutOptions
from diffalign.diffusion.samplers import Sampler, Step
from diffalign.diffusion.schedule import pipeline_schedule

if TYPE_CHECKING:
    from diffalign.policy import Policy
    from diffalign.policy.family import Cond

Score = Callable[[Tensor, Tensor], Tensor]
"""(K, N, C, H, W) candidates and their (N,) times to (K, N) scores."""


# ---------------------------------------------------------------------- predictions


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Predictions of a policy for N prompts, with classifier-free guidance."""

    policy: Policy
    cond: Cond
    """(N, ...) conditioning."""
    uncond: Cond | None = None
    """(N, ...) conditioning of the empty prompt; not needed at scale 1."""
    scale: float = 1.0
    """g; 1 is no guidance."""
    sizes: Tensor | None = None
    """(N, 6) of SDXL."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """(N, C, h, w) native predictions at (N,) times; both branches in one pass.

        Raises:
            ValueError: guidance without ``uncond``.
        """
        if self.scale == 1:
            return self.policy.predict(x, t, self.cond, self.sizes)
        if self.uncond is None:
            raise ValueError(f"guidance is {self.scale}: the conditioning of the empty prompt is missing")
        both = {k: torch.cat([self.uncond[k], v]) for k, v in self.cond.items()}
        sizes = None if self.sizes is None else self.sizes.repeat(2, 1)
        empty, prompted = self.policy.predict(x.repeat(2, 1, 1, 1), t.repeat(2), both, sizes).chunk(2)
        return empty + self.scale * (prompted - empty)

    def rows(self, index: Tensor) -> Guided:
        """The same for some of the prompts."""

        def some(cond: Cond | None) -> Cond | None:
            return None if cond is None else {k: v[index] for k, v in cond.items()}

        sizes = None if self.sizes is None else self.sizes[index]
        return replace(self, cond=some(self.cond) or {}, uncond=some(self.uncond), sizes=sizes)


# ---------------------------------------------------------------------- records


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One recorded step of N images."""

    step: int
    """0 is the noisiest."""
    x: Tensor
    """(N, C, h, w) where it starts."""
    x_next: Tensor
    """(N, C, h, w) where the run went on."""
    logp: Tensor
    """(N,) fp32 log-probability of that under the policy that sampled."""
    mean: Tensor | None = None
    """(N, C, h, w) fp32 mean under the policy that sampled, if kept."""
    candidates: Tensor | None = None
    """(K, N, C, h, w) of a step that branched."""
    scores: Tensor | None = None
    """(K, N) of its candidates."""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """A recorded run of N images."""

    sampler: Sampler
    guidance: float
    x0: Tensor
    """(N, C, h, w) last latents, to be decoded."""
    records: tuple[Recorded, ...]
    """Its stochastic steps, noisiest first; none for a deterministic run."""


# ---------------------------------------------------------------------- runs


def rollout(
    guided: Guided,
    seeds: Sequence[int],
    options: RolloutOptions,
    *,
    starts: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
    iteration: int = 0,
    seed: int = 0,
    score: Score | None = None,
) -> Trajectories:
    """Sample N images and record the stochastic steps; without gradient and dropout.

    An image depends on its own seeds alone, whatever batch it is in; what is chosen for the whole run (the
    window) depends on ``iteration`` and ``seed``.

    Args:
        guided: policy and prompts; ``scale`` is the guidance.
        seeds: of each image's noise.
        options: see RolloutOptions.
        starts: seeds of the first latents; the same for all images of a prompt gives them one x_T.
        shape: (C, h, w) of a latent; None is the model's own.
        iteration: how many runs there were before.
        seed: of the training run.
        score: judge of candidates, where the run branches.

    Raises:
        ValueError: guidance differs from the options', the run branches without a judge, or the transition
            does not fit the model.
    """
    from diffalign.policy.modes import evaluating

    _check(guided, options, score)
    policy = guided.policy
    sampler = sampler_of(policy, options, iteration, seed)
    schedule = sampler.schedule
    kept = options.recorder.torch_dtype
    like = torch.empty(len(seeds), *(shape or latent_shape(policy)), device=policy.device)
    x = seeded_noise([draw_seed("start", s) for s in starts or seeds], like).to(kept).float()
    records, last = [], None
    with torch.no_grad(), evaluating(policy.denoiser):
        for i in range(len(schedule)):
            pred = guided(x, times_of(sampler, i, len(x), x.device))
            noise = _noise(seeds, i, 0, x) if sampler.std[i] > 0 else None
            step = sampler.step(pred, x, i, noise=noise, last_x0=last)
            record = _recorded(sampler, step, x, i, seeds, options, score)
            x, last = (step.x.to(kept).float() if record is None else record.x_next), step.x0_hat
            if record is not None:
                records.append(_put_away(record, options.recorder))
    return Trajectories(sampler=sampler, guidance=guided.scale, x0=x, records=tuple(records))


def sampler_of(policy: Policy, options: RolloutOptions, iteration: int = 0, seed: int = 0) -> Sampler:
    """Sampler of a run; see ``rollout``.

    Raises:
        ValueError: the transition does not fit the model.
    """
    schedule = pipeline_schedule(policy.pipeline.scheduler, policy.process, options.steps, options.final)
    chosen = options.stochastic.chosen(options.steps, draw_seed(seed, iteration), iteration)
    return Sampler(options.transition, policy.process, schedule, chosen, options.otherwise)


def replay(guided: Guided, run: Trajectories, x: Tensor, x_next: Tensor, i: int | Tensor) -> Step:
    """Recorded steps under the policy (or the reference) as it is now.

    Dropout must be off until after the backward pass (``policy.modes.evaluating`` around both): gradient
    checkpointing asks the network again there.

    Args:
        guided: policy and the prompts of these rows, at the run's guidance.
        run: where they are from.
        x: (N, C, h, w) where the steps start, of any images of the run.
        x_next: (N, C, h, w) where they went.
        i: step of all rows, or (N,) int64 steps on the host.

    Raises:
        ValueError: the guidance is not the run's, or dropout is on: the ratio would compare two models.
    """
    if guided.scale != run.guidance:
        raise ValueError(
            f"the rollout was made at guidance {run.guidance:g} and is replayed at {guided.scale:g}: "
            "the ratio of their probabilities means nothing; take the same in both"
        )
    if any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in guided.policy.wrapped.modules()):
        raise ValueError(
            "dropout is on in a replay: hold policy.modes.evaluating(policy.denoiser) around replay and "
            "backward pass, or set policy.adapter.dropout=0"
        )
    x = x.float()
    pred = guided(x, times_of(run.sampler, i, len(x), x.device))
    return run.sampler.step(pred, x, i, x_next)


def latent_shape(policy: Policy, pixels: int | None = None) -> tuple[int, int, int]:
    """(C, h, w) of a latent of a picture of so many pixels a side, or at the model's own size."""
    side = (pixels or policy.side) // int(policy.pipeline.vae_scale_factor)
    return int(policy.pipeline.vae.config.latent_channels), side, side


def times_of(sampler: Sampler, i: int | Tensor, rows: int, device: torch.device) -> Tensor:
    """(N,) times at which the network is asked at a step, or at (N,) steps on the host."""
    index = torch.full((rows,), i) if isinstance(i, int) else i
    return send(sampler.schedule.times[index], device)


def _check(guided: Guided, options: RolloutOptions, score: Score | None) -> None:
    if guided.scale != options.guidance:
        raise ValueError(f"the run's guidance is {options.guidance:g}, and predictions have {guided.scale:g}")
    if options.branching.candidates > 1 and score is None:
        raise ValueError(
            f"branching.candidates is {options.branching.candidates}: a judge (score) must compare them"
        )


def _noise(seeds: Sequence[int], i: int, candidate: int, like: Tensor) -> Tensor:
    return seeded_noise([draw_seed("rollout", s, i, candidate) for s in seeds], like)


def _recorded(
    sampler: Sampler,
    step: Step,
    x: Tensor,
    i: int,
    seeds: Sequence[int],
    options: RolloutOptions,
    score: Score | None,
) -> Recorded | None:
    """The step as it is recorded; None where it is deterministic."""
    if step.logp is None:
        return None
    kept, branching = options.recorder.torch_dtype, options.branching
    x_next, candidates, scores = step.x.to(kept).float(), None, None
    if score is not None and branching.candidates > 1 and i >= branching.first:
        more = [
            step.mean + float(sampler.std[i]) * _noise(seeds, i, k, x) for k in range(1, branching.candidates)
        ]
        candidates = torch.stack([x_next, *(c.to(kept).float() for c in more)])  # (K, N, C, h, w)
        time = sampler.schedule.time(i + 1 if branching.score_at == "next" else i)
        scores = score(candidates, send(time.repeat(len(x)), x.device))  # (K, N)
        x_next = candidates[_next(branching, scores, seeds, i), torch.arange(len(x), device=x.device)]
    logp = sampler.logp(x_next, step.mean, i)
    mean = step.mean if options.recorder.means else None
    return Recorded(step=i, x=x, x_next=x_next, logp=logp, mean=mean, candidates=candidates, scores=scores)


def _next(branching: Branching, scores: Tensor, seeds: Sequence[int], i: int) -> Tensor:
    """(N,) candidate that each image goes on from."""
    if branching.go_on == "best":
        return scores.nan_to_num(nan=-torch.inf).argmax(0)
    drawn = [draw_seed("branch", s, i) % branching.candidates for s in seeds]
    return send(torch.tensor(drawn), scores.device)


def _put_away(record: Recorded, recorder: Recorder) -> Recorded:
    """Latents in the dtype and at the place where they are kept."""

    def away(value: Tensor, dtype: torch.dtype) -> Tensor:
        return value.to("cpu" if recorder.device == "cpu" else value.device, dtype)

    kept = recorder.torch_dtype
    return replace(
        record,
        x=away(record.x, kept),
        x_next=away(record.x_next, kept),
        mean=None if record.mean is None else away(record.mean, torch.float32),
        candidates=None if record.candidates is None else away(record.candidates, kept),
    )
