"""A latent reward model by noise level, beside judges of the picture predicted from the same latents."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.assets import asset
from diffalign.evaluate.report import write_atomic
from diffalign.policy import Policy, load_policy
from diffalign.world.clip import best_possible, simulate_votes
from diffalign.world.grammar import parse
from diffalign.world.raters import named_rater
from scorers.accuracy import measure
from scorers.images import to_tensors
from scorers.lrm import Lrm, LrmOptions
from scorers.lrm_noise import NoiseLevels
from scorers.lrm_train import LatentLearner
from scorers.pickscore import PickScore
from scorers.train import TrainOptions, save_with_report, train_scorer
from scorers.train_state import REPORT, forget_state
from scorers.votes import Vote

logger = logging.getLogger(__name__)

Judge = Callable[[Tensor, Sequence[str]], Tensor]
"""(B, 3, 64, 64) pictures in [0, 1] and B prompts to (B,) scores."""
JUDGES = {
    "lrm": "latent reward model, on the noisy latents",
    "scorer": "pixel scorer, on the predicted picture",
    "oracle": "oracle of the taste, on the predicted picture",
}
CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class LatentPlan:
    """How much is simulated and trained; the defaults make the table of docs/latent_rewards.md."""

    policy: str = "samples/shapes/unet"
    """Denoiser from which the latent reward model is made, and which predicts the pictures."""
    scorer: str = "samples/shapes/scorer"
    """Pixel scorer beside it, trained on 4000 votes of the taste large on clean pictures; empty for none."""
    taste: str = "large"
    votes: int = 2000
    validation: int = 200
    """Votes on other pictures that choose the step."""
    heldout: int = 400
    """Votes on prompts that nobody learnt from."""
    levels: tuple[int, ...] = (0, 200, 400, 600, 800, 950)
    """Timesteps of the table; of a flow 1000 sigma."""
    steps: int = 200
    batch: int = 32
    learning_rate: float = 5e-4
    guidance: float = 7.5
    """Visual feature enhancement, see LrmOptions."""
    seed: int = 0

    def training(self) -> TrainOptions:
        """How it is trained: at rates far above the published ones, for a far smaller model."""
        return TrainOptions(
            steps=self.steps, batch=self.batch, learning_rate=self.learning_rate, warmup=self.steps // 20,
            weight_decay=0.01, eval_every=max(1, self.steps // 8), patience=8, balance_prompts=False,
            keep="loss", seed=self.seed,
        )  # fmt: skip


def latent_votes(policy: Policy, votes: Sequence[Vote]) -> list[Vote]:
    """The same votes on clean latents (C, h, w) in the denoiser's scale, the mean of the VAE's posterior."""
    pictures = to_tensors([v.first for v in votes] + [v.second for v in votes])
    parts = []
    with torch.no_grad():
        for i in range(0, len(pictures), CHUNK):
            x01 = torch.stack(pictures[i : i + CHUNK]).to(policy.device)
            parts.append(policy.scale_latents(policy.encode_images(2 * x01 - 1)[0]))
    latents = torch.cat(parts)
    return [
        vote._replace(first=a, second=b)
        for vote, a, b in zip(votes, latents[: len(votes)], latents[len(votes) :], strict=True)
    ]


def trained(policy: Policy, plan: LatentPlan, work: Path) -> Lrm:
    """A latent reward model made of a policy, trained on simulated votes; that in ``work`` if it is done.

    Raises:
        ValueError: the model in ``work`` is of another plan.
    """
    if (work / REPORT).is_file():
        if json.loads((work / REPORT).read_text())["plan"] != json.loads(json.dumps(asdict(plan))):
            raise ValueError(
                f"{work} holds a latent reward model of another plan; name another folder (--work)"
            )
        return Lrm.load(work)
    start, rater = time.process_time(), named_rater(plan.taste)
    votes, _ = simulate_votes(plan.votes + plan.validation, rater, np.random.default_rng([plan.seed, 21]))
    lrm = Lrm.of_pipeline(
        policy.pipeline, vae_id=policy.encoder_id("vae"), options=LrmOptions(guidance=plan.guidance)
    )
    learner = LatentLearner(lrm, levels_of(policy))
    made = latent_votes(policy, votes)
    run = train_scorer(learner, made[: plan.votes], made[plan.votes :], plan.training(), resume=work)
    more = {"plan": asdict(plan), "seconds": round(time.process_time() - start)}
    save_with_report(learner, work, run, more)
    forget_state(work)
    return lrm


def levels_of(policy: Policy, times: Iterable[int] | None = None) -> NoiseLevels:
    """Noise levels of a policy's process at some times as the denoiser takes them.

    Args:
        policy: whose process it is.
        times: indices of timesteps, of a flow 1000 sigma; None is LPO's grid 1, 51, ..., 951, of a flow
            50, 100, ..., 950.

    Raises:
        ValueError: a time that the process does not have.
    """
    alphas = policy.process.alphas_cumprod
    if alphas is None:
        return NoiseLevels.flow(t / 1000 for t in (range(50, 1000, 50) if times is None else times))
    return NoiseLevels.vp(alphas) if times is None else NoiseLevels.vp(alphas, times)


def predicted_pictures(policy: Policy, x_t: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
    """(B, 3, H, W) in [0, 1]: the decoded x0 that the policy predicts of (B, C, h, w) latents in one step."""
    once = list(dict.fromkeys(prompts))
    rows = dict(zip(once, policy.encode_prompts(once), strict=True))
    cond = policy.collate_prompts([rows[p] for p in prompts])
    prediction = policy.predict(x_t, t, cond)
    pixels = policy.decode(policy.process.convert(prediction, x_t, t, "x0"))
    return (pixels / 2 + 0.5).clamp(0, 1)


def gaps_at(
    policy: Policy, lrm: Lrm, judges: dict[str, Judge], votes: Sequence[Vote], level: int, seed: int
) -> dict[str, Tensor]:
    """(N,) gaps, first minus second, of every judge at one timestep, all from the same noisy latents."""
    generator = torch.Generator().manual_seed(1000 * seed + level)
    found: dict[str, list[Tensor]] = {name: [] for name in ("lrm", *judges)}
    levels = levels_of(policy, [level])
    for i in range(0, len(votes), CHUNK // 2):
        some = votes[i : i + CHUNK // 2]
        x0 = torch.stack([torch.as_tensor(x) for x in (*(v.first for v in some), *(v.second for v in some))])
        n = torch.randn(x0.shape, generator=generator)
        model_time, prompts = levels.times.expand(len(x0)), [v.prompt for v in some] * 2
        t = model_time / 1000 if policy.process.is_flow else model_time
        x_t = levels.add_noise(x0, n, torch.zeros(len(x0), dtype=torch.long))
        with torch.no_grad():
            seen = predicted_pictures(policy, x_t, t, prompts)
            scores = {name: judge(seen, prompts) for name, judge in judges.items()}
            scores["lrm"] = lrm.score_latents(x_t, model_time, prompts)
        for name, score in scores.items():
            first, second = score.float().chunk(2)
            found[name].append(first - second)
    return {name: torch.cat(parts) for name, parts in found.items()}


def study(plan: LatentPlan, work: Path) -> dict[str, Any]:
    """Train, and measure every judge at every level.

    Args:
        plan: see LatentPlan.
        work: folder of the resume state and of the trained model; a second call goes on.

    Returns:
        The plan; ``decided``, the share of decided held-out votes that each judge gets right at each level;
        the best possible on the clean pictures; seconds of processor time of the training.
    """
    policy, rater = load_policy(str(asset(plan.policy))), named_rater(plan.taste)
    lrm = trained(policy, plan, work)
    heldout, gap = simulate_votes(plan.heldout, rater, np.random.default_rng([plan.seed, 22]), "heldout")
    labels = torch.tensor([vote.label for vote in heldout])
    judges: dict[str, Judge] = {"oracle": lambda x, prompts: rater.score(x, [parse(p) for p in prompts])}
    if plan.scorer:
        judges["scorer"] = PickScore.load(asset(plan.scorer)).score_tensor
    made, decided = latent_votes(policy, heldout), {}
    for level in plan.levels:
        file = work / f"level-{level}.json"
        if not file.is_file():
            gaps = gaps_at(policy, lrm, judges, made, level, plan.seed)
            right = {k: measure(g.sigmoid(), labels, 0.0).decided for k, g in gaps.items()}
            write_atomic(file, json.dumps(right) + "\n")
        decided[str(level)] = json.loads(file.read_text())
        logger.info("t = %d: %s", level, decided[str(level)])
    report = json.loads((work / REPORT).read_text())
    return {
        "plan": asdict(plan),
        "decided": decided,
        "best_possible": best_possible(gap, labels, rater).decided,
        "votes_decided": int((labels != 0.5).sum()),
        "best_step": report["best_step"],
        "steps_made": report["steps"],
        "seconds_training": report["seconds"],
    }


def markdown(found: dict[str, Any]) -> str:
    """The table of what ``study`` found."""
    plan, count = found["plan"], found["votes_decided"]
    levels = list(found["decided"])
    lines = ["| judge | " + " | ".join(f"t = {t}" for t in levels) + " |", "|---" * (len(levels) + 1) + "|"]
    for name, what in JUDGES.items():
        if any(name not in found["decided"][t] for t in levels):
            continue  # the plan names no scorer
        cells = " | ".join(f"{found['decided'][t][name]:.3f}" for t in levels)
        lines.append(f"| {what} | {cells} |")
    error = (0.25 / count) ** 0.5
    lines += [
        "",
        f"Share of {count} decided votes on held-out prompts that each gets right; 0.5 is a coin, and one "
        f"standard error is at most {error:.3f}. The voter's own noise-free utility of the clean pictures "
        f"gets {found['best_possible']:.3f}. Taste {plan['taste']}, {plan['votes']} votes, step "
        f"{found['best_step']} of {found['steps_made']} with {plan['batch']} pairs each, guidance "
        f"{plan['guidance']:g}; {found['seconds_training']} s of processor time since the last start of "
        "the training.",
    ]
    return "\n".join(lines)


def check_marks(page: Path, what: str) -> tuple[str, str]:
    """The marks of a page between which a table goes, comments that name ``what`` it is.

    Raises:
        ValueError: the page lacks the marks.
    """
    start, end = f"<!-- {what} -->", f"<!-- /{what} -->"
    text = page.read_text(encoding="utf-8")
    if start not in text or end not in text:
        raise ValueError(f"{page} lacks the marks {start} and {end}, between which the table goes")
    return start, end


def write_table(page: Path, table: str, what: str = "latent rewards") -> None:
    """Put a table between the marks of a page, see ``check_marks``.

    Raises:
        ValueError: the page lacks the marks.
    """
    start, end = check_marks(page, what)
    head, rest = page.read_text(encoding="utf-8").split(start, 1)
    write_atomic(page, f"{head}{start}\n\n{table}\n\n{end}{rest.split(end, 1)[1]}")
