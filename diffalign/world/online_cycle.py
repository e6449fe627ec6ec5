"""Online pairs on a taste that runs in a circle: a general preference judge beside Bradley-Terry."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.assets import asset
from diffalign.diffusion.rollout import Guided, rollout
from diffalign.diffusion.rollout_options import RolloutOptions, StochasticSteps
from diffalign.diffusion.transitions import Ode
from diffalign.evaluate.report import write_atomic
from diffalign.policy import Policy, load_policy
from diffalign.world.oracle import hue_of, measure, object_masks
from diffalign.world.scorer_studies import CERTAIN, WorthHead, rivals
from diffalign.world.scorer_table import TablePlan, tower
from scorers.featured import load_encoder, read_head, read_options
from scorers.gpm import GPM, GPMOptions
from scorers.loading import build
from scorers.train import Vote, evaluate, train_scorer

logger = logging.getLogger(__name__)

PROMPTS = tuple(f"a {shape}" for shape in ("circle", "square", "triangle", "star", "cross", "ring"))
"""They name no colour, so that the policy is free in what the taste is about."""
KINDS = ("purple", "warm", "cold")
"""Each beats the next, and the last the first; the base makes them about equally often."""
BORDERS = (255.0, 345.0, 90.0)
"""Hues in degrees at which the kinds begin."""
JUDGES = {
    "gpm": "general preference model",
    "bradley_terry": "Bradley-Terry on the same features",
}


@dataclass(frozen=True, kw_only=True)
class CyclePlan:
    """How much is voted on and trained; the defaults make docs/studies/online_cycle.md."""

    policy: str = "samples/shapes/unet"
    pictures: int = 40
    """Pictures of the base for each prompt that are voted on."""
    votes: int = 2000
    heldout: int = 600
    head_steps: int = 150
    """Steps of the judges' heads, on the frozen towers of samples/shapes/scorer."""
    stages: tuple[int, ...] = (8, 16)
    """Iterations after which the policy is looked at."""
    images: int = 8
    """Pictures of each prompt in an iteration."""
    learning_rate: float = 8e-4
    beta: float = 500.0
    seeds: tuple[int, ...] = (0, 1)
    looked_at: int = 24
    """Pictures of each prompt that are looked at after a stage."""

    def recipe(self, scorer: str, prompts: Path, output: Path, seed: int) -> dict[str, Any]:
        """Online pairs: the best and the worst of a prompt by win rates within it."""
        return {
            "policy": {"model": self.policy, "adapter": {"rank": 16}},
            "objective": {"name": "online_pairs", "objective": {"name": "dpo", "beta": self.beta}},
            "data": {"path": str(prompts)},
            "rollout": {
                "steps": 10, "guidance": 1.0, "transition": {"name": "ode"}, "stochastic": {"which": "none"},
            },
            "groups": {"prompts": len(PROMPTS), "images": self.images, "batch": 48},
            "rewards": [{"scorer": scorer, "among": "group"}],
            "noise": {"draws": 4, "low": 0.5, "per": "group"},
            "update": {"updates": 2, "micro_batch": 48},
            "optim": {"learning_rate": self.learning_rate, "weight_decay": 0.0},
            "steps": self.stages[0], "seed": seed, "checkpoint_every": self.stages[0],
            "evaluate": {"prompts": 0}, "output": str(output),
        }  # fmt: skip


# ---------------------------------------------------------------------- the taste


def kinds_of(pictures: Tensor) -> Tensor:
    """(B,) int64 place in KINDS by the hue of the largest object, -1 where no shape can be recognised.

    ``pictures`` are (B, 3, 64, 64) in [0, 1].
    """
    mask = object_masks(pictures)[:, :1].float()  # (B, 1, 64, 64)
    rgb = (pictures * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)
    past = (hue_of(rgb) - BORDERS[0]) % 360
    starts = torch.tensor([(b - BORDERS[0]) % 360 for b in BORDERS])
    kind = torch.bucketize(past, starts, right=True) - 1
    return torch.where(measure(pictures).shape[:, 0] >= 0, kind, -1)


def planted(first: Tensor, second: Tensor) -> Tensor:
    """Chance that pictures of kinds ``first`` beat pictures of kinds ``second``, which broadcast.

    Kinds go in a circle; any kind beats a picture without a shape; equals are even.
    """
    ahead = (second - first) % len(KINDS) == 1
    chance = torch.where(ahead, CERTAIN, 1 - CERTAIN)
    chance = torch.where(first < 0, 1 - CERTAIN, torch.where(second < 0, CERTAIN, chance))
    return torch.where(first == second, 0.5, chance)


def votes_on(pictures: Mapping[str, Tensor], n: int, seed: int) -> list[Vote]:
    """Votes by the planted taste on pairs of pictures of one prompt; equals are called a tie."""
    rng, found = np.random.default_rng([seed, 31]), []
    small = {p: (x * 255).round().byte() for p, x in pictures.items()}
    kinds = {p: kinds_of(x) for p, x in pictures.items()}
    for _ in range(n):
        prompt = PROMPTS[int(rng.integers(len(PROMPTS)))]
        i, j = rng.choice(len(small[prompt]), 2, replace=False)
        chance = float(planted(kinds[prompt][i], kinds[prompt][j]))
        label = 0.5 if chance == 0.5 else float(rng.random() < chance)
        found.append(Vote(small[prompt][i], small[prompt][j], prompt, label))
    return found


# ---------------------------------------------------------------------- pictures and judges


def pictures_of(policy: Policy, n: int, seed: int) -> dict[str, Tensor]:
    """(n, 3, 64, 64) pictures in [0, 1] of each prompt, without guidance; the same seed, the same noise."""
    options = RolloutOptions(
        steps=10, guidance=1.0, transition=Ode(), stochastic=StochasticSteps(which="none")
    )
    found = {}
    for k, prompt in enumerate(PROMPTS):
        cond = policy.collate_prompts(policy.encode_prompts([prompt] * n))
        first = 1_000_000 * (seed + 1) + 10_000 * k
        run = rollout(Guided(policy=policy, cond=cond), range(first, first + n), options)
        with torch.no_grad():
            found[prompt] = ((policy.decode(run.x0.float()) + 1) / 2).clamp(0, 1)
    return found


class Worth(GPM):
    """Bradley-Terry as a judge of pairs, by the same network as GPM; see ``scorer_studies.WorthHead``."""

    name = "worth"

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Worth:
        """Load what ``save`` wrote; see GPM."""
        encoder, folder = load_encoder(cls.name, weights, device=device, dtype=dtype)
        options, width = read_options(GPMOptions, folder, cls.name), encoder.clip.config.projection_dim
        head = build(lambda: WorthHead(2 * width, width, options), read_head(folder), where=folder)
        return cls(encoder, head).to(device)


SPECS = {"gpm": "gpm", "bradley_terry": f"{__name__}:Worth"}


def judges(plan: CyclePlan, base: Policy, work: Path) -> dict[str, Any]:
    """Train and save both judges on the same votes on the base's pictures.

    Returns:
        Shares of the votes, decided ones alone, that each gets right, the planted rule among them.
    """
    seen, held = (pictures_of(base, plan.pictures, seed) for seed in (100, 101))
    votes, heldout = votes_on(seen, plan.votes, 0), votes_on(held, plan.heldout, 1)
    cut, found = len(votes) // 10, dict[str, Any]()
    options = TablePlan(head_steps=plan.head_steps)
    for name, scorer in rivals(tower(options), 0).items():
        judge = Worth(scorer.encoder, scorer.head) if name == "bradley_terry" else scorer
        train_scorer(judge, votes[cut:], votes[:cut], options.heads())
        found[name] = evaluate(judge, heldout, 0.0).decided
        judge.save(work / name)
        logger.info("%s gets %.3f of the decided votes right", name, found[name])
    found["planted"] = _planted_right(heldout)
    found["base"] = looks(kinds_by_prompt(held), kinds_by_prompt(seen))
    return found


def _planted_right(votes: Sequence[Vote]) -> float:
    first, second = (
        kinds_of(torch.stack([torch.as_tensor(v[i]) for v in votes]).float() / 255) for i in (0, 1)
    )
    decided = [i for i, v in enumerate(votes) if v.label != 0.5]
    right = (planted(first, second) > 0.5).tolist()
    return float(np.mean([right[i] == (votes[i].label > 0.5) for i in decided]))


# ---------------------------------------------------------------------- figures


def kinds_by_prompt(pictures: Mapping[str, Tensor]) -> Tensor:
    """(P, n) kinds of n pictures of each of P prompts."""
    return torch.stack([kinds_of(x) for x in pictures.values()])


def looks(own: Tensor, base: Tensor) -> dict[str, float]:
    """Figures of (P, n) kinds of a model's pictures, beside (P, m) of the base's.

    ``over_base``: how often its pictures are preferred to the base's of the same prompt. ``worst``: the same
    against whoever makes one kind alone, the worst of the three for the model; the von Neumann winner gets
    0.5, a single kind 0.05. ``spread``: entropy of the kinds in units of ln 3, 1 for three even ones.
    """
    shares = torch.stack([(own == k).double().mean() for k in range(len(KINDS))])
    p = shares / shares.sum().clamp(min=1e-12)
    against = torch.stack([planted(own, torch.tensor(k)).double().mean() for k in range(len(KINDS))])
    return {
        **{kind: float(share) for kind, share in zip(KINDS, shares, strict=True)},
        "shapes": float(shares.sum()),
        "over_base": preferred(own, base),
        "worst": float(against.min()),
        "spread": float(-(p * p.clamp(min=1e-12).log()).sum() / np.log(len(KINDS))),
    }


def preferred(own: Tensor, other: Tensor) -> float:
    """How often pictures of (P, n) kinds are preferred to others of (P, m) kinds, of the same prompt."""
    return float(planted(own[:, :, None], other[:, None, :]).double().mean())


# ---------------------------------------------------------------------- the study


def study(plan: CyclePlan, work: Path) -> dict[str, Any]:
    """Train the judges and the policies, and look at their pictures.

    Args:
        plan: see CyclePlan.
        work: folder of judges, runs and what was found so far; a second call goes on after the last stage.

    Returns:
        The plan, the judges' accuracy, the base's figures, and those of each run at each stage.

    Raises:
        ValueError: what is in ``work`` is of another plan; more seeds may be asked for.
    """
    file = work / "found.json"
    given = {k: v for k, v in json.loads(json.dumps(asdict(plan))).items() if k != "seeds"}
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"plan": given, "runs": {}}
    if found["plan"] != given:
        raise ValueError(f"{work} holds a study of another plan; name another folder (--work)")
    base = load_policy(str(asset(plan.policy)))
    if "judges" not in found:
        start = time.process_time()
        found["judges"] = judges(plan, base, work)
        found["seconds_judges"] = round(time.process_time() - start)
        write_atomic(file, json.dumps(found, indent=2) + "\n")
    reference = kinds_by_prompt(pictures_of(base, plan.looked_at, 200))
    for judge, seed in ((judge, seed) for seed in plan.seeds for judge in JUDGES):
        for stage in plan.stages:
            _go_on(plan, work, judge, seed, stage, reference, found)
            write_atomic(file, json.dumps(found, indent=2) + "\n")
    return found


def _go_on(
    plan: CyclePlan, work: Path, judge: str, seed: int, stage: int, base: Tensor, found: dict[str, Any]
) -> None:
    """Train up to a stage, if that is not done."""
    from diffalign.train.align import align

    run = found["runs"].setdefault(f"{judge}-{seed}", {"folder": "", "stages": {}})
    if str(stage) in run["stages"]:
        return
    start = time.process_time()
    if run["stages"]:
        done = align({}, f"steps={stage}", resume=run["folder"])
    else:
        prompts = work / "prompts.txt"
        write_atomic(prompts, "\n".join(PROMPTS) + "\n")
        scorer = f"{SPECS[judge]}={work / judge}"
        done = align(plan.recipe(scorer, prompts, work / f"{judge}-{seed}", seed))
    kinds = kinds_by_prompt(pictures_of(done.policy, plan.looked_at, 300))
    run["folder"] = str(done.dir)
    run["stages"][str(stage)] = looks(kinds, base) | {"seconds": round(time.process_time() - start)}
    logger.info("%s, seed %d, iteration %d: %s", judge, seed, stage, run["stages"][str(stage)])


COLUMNS = {
    "over_base": "preferred to the base", "worst": "against the worst single kind", "spread": "spread",
    "purple": "purple", "warm": "warm", "cold": "cold", "shapes": "with a shape",
}  # fmt: skip


def markdown(found: Mapping[str, Any]) -> str:
    """The table of what ``study`` found."""
    lines = [f"| | iterations | {' | '.join(COLUMNS.values())} |", "|---" * (2 + len(COLUMNS)) + "|"]
    lines.append(_line("base", "0", found["judges"]["base"]))
    for name, run in found["runs"].items():
        judge, _, seed = name.rpartition("-")
        rows = run["stages"].items()
        lines += [_line(f"{JUDGES[judge]}, seed {seed}", stage, figures) for stage, figures in rows]
    right = found["judges"]
    seconds = found["seconds_judges"] + sum(
        s["seconds"] for run in found["runs"].values() for s in run["stages"].values()
    )
    return "\n".join([
        *lines, "",
        f"Judges on {found['plan']['heldout']} held-out votes, those that are no ties: general preference "
        f"model {right['gpm']:.3f}, Bradley-Terry {right['bradley_terry']:.3f}, the planted rule itself "
        f"{right['planted']:.3f}. {seconds} s of processor time in all.",
    ])  # fmt: skip


def _line(name: str, stage: str, figures: Mapping[str, float]) -> str:
    return f"| {name} | {stage} | " + " | ".join(f"{figures[c]:.2f}" for c in COLUMNS) + " |"


def smaller(plan: CyclePlan) -> CyclePlan:
    """A plan that tries everything out in seconds; its figures mean nothing."""
    return replace(
        plan, pictures=6, votes=60, heldout=30, head_steps=2, stages=(1, 2), images=2, seeds=(0,), looked_at=2
    )
