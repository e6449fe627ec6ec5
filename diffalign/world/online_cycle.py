"""Online pairs on a taste that runs in a circle: a general preference judge beside Bradley-Terry."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.assets import asset
from diffalign.diffusion.rollout import Guided, rollout
from diffalign.diffusion.rollout_options import RolloutOptions, StochasticSteps
from diffalign.diffusion.transitions import Ode
from diffalign.evaluate.report import write_atomic
from diffalign.policy import Policy, load_policy
from diffalign.world.cyclic_taste import KINDS, PROMPTS, Ballots, ballots_of, kinds_of, planted
from diffalign.world.scorer_studies import WorthHead, rivals
from diffalign.world.scorer_table import TablePlan, tower
from scorers.featured import joint_inputs, load_encoder, read_head, read_options
from scorers.gpm import GPM, GPMOptions
from scorers.loading import build
from scorers.losses_structure import gpm_score
from scorers.pickscore import PickScore

logger = logging.getLogger(__name__)

JUDGES = {
    "gpm": "general preference model",
    "bradley_terry": "Bradley-Terry on the same features",
}


@dataclass(frozen=True, kw_only=True)
class CyclePlan:
    """How much is voted on and trained; the defaults make docs/studies/online_cycle.md."""

    policy: str = "samples/shapes/unet"
    votes: int = 1200
    """Votes on drawn pictures that the judges learn from."""
    heldout: int = 400
    """Votes on other drawn pictures."""
    head_steps: int = 300
    """Steps of the judges' heads on all votes, on the frozen towers of samples/shapes/scorer."""
    stages: tuple[int, ...] = (8, 16)
    """Iterations after which the policy is looked at."""
    images: int = 6
    """Pictures of each prompt in an iteration."""
    learning_rate: float = 1e-3
    beta: float = 500.0
    seeds: tuple[int, ...] = (0, 1)
    looked_at: int = 12
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


# ---------------------------------------------------------------------- pictures and judges


def pictures_of(policy: Policy, n: int, seed: int) -> Tensor:
    """(P, n, 3, 64, 64) pictures in [0, 1] of the P prompts, without guidance."""
    options = RolloutOptions(
        steps=10, guidance=1.0, transition=Ode(), stochastic=StochasticSteps(which="none")
    )
    found = []
    for k, prompt in enumerate(PROMPTS):
        cond = policy.collate_prompts(policy.encode_prompts([prompt] * n))
        first = 1_000_000 * (seed + 1) + 10_000 * k
        run = rollout(Guided(policy=policy, cond=cond), range(first, first + n), options)
        with torch.no_grad():
            found.append(((policy.decode(run.x0.float()) + 1) / 2).clamp(0, 1))
    return torch.stack(found)


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


def judges(plan: CyclePlan, work: Path) -> dict[str, float]:
    """Train and save both judges on the same votes.

    Returns:
        Share of the held-out votes, ties left out, that each and the planted rule get right.
    """
    start = tower(TablePlan())
    votes, held = ballots_of(plan.votes, 0), ballots_of(plan.heldout, 1)
    seen, shown = features_of(start, votes), features_of(start, held)
    found = {"planted": right(planted(*held.kinds.chunk(2)) - 0.5, held.label)}
    for name, scorer in rivals(start, 0).items():
        judge = Worth(start, scorer.head) if name == "bradley_terry" else scorer
        fit(judge, seen, votes.label, plan.head_steps)
        with torch.no_grad():
            found[name] = right(logits(judge, shown), held.label)
        judge.save(work / name)
        logger.info("%s gets %.3f of the decided votes right", name, found[name])
    return found


@torch.no_grad()
def features_of(start: PickScore, votes: Ballots) -> Tensor:
    """(2N, W) inputs of the heads, which the frozen towers make once."""
    text = start.encode_prompts(votes.prompts)
    parts = zip(votes.pictures.split(256), text.split(256), strict=True)
    return torch.cat([joint_inputs(start.encode_images(x), t) for x, t in parts])


def logits(judge: GPM, features: Tensor) -> Tensor:
    """(N,) logits that the first side is preferred; see ``features_of``."""
    first, second = judge.head.embed(features).chunk(2)
    return gpm_score(first, second, None) / judge.temperature


def fit(judge: GPM, features: Tensor, label: Tensor, steps: int) -> None:
    """Train the head on all votes at once, ties and all."""
    head = judge.head.requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(steps):
        loss = F.binary_cross_entropy_with_logits(logits(judge, features), label.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.requires_grad_(False)


def right(logit: Tensor, label: Tensor) -> float:
    """Share of the votes, ties left out, that (N,) logits get right."""
    decided = label != 0.5
    return float(((logit > 0) == (label > 0.5))[decided].double().mean())


# ---------------------------------------------------------------------- figures


def kinds_by_prompt(pictures: Tensor) -> Tensor:
    """(P, n) kinds of (P, n, 3, 64, 64) pictures."""
    return kinds_of(pictures.flatten(0, 1)).view(pictures.shape[:2])


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
        ValueError: what is in ``work`` is of another plan; more seeds and stages may be asked for.
    """
    file = work / "found.json"
    given: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"plan": given, "runs": {}}
    if any(found["plan"].get(k) != v for k, v in given.items() if k not in ("seeds", "stages")):
        raise ValueError(f"{work} holds a study of another plan; name another folder (--work)")
    base = load_policy(str(asset(plan.policy)))
    if "judges" not in found:
        start = time.process_time()
        found["judges"] = judges(plan, work)
        found["seconds_judges"] = round(time.process_time() - start)
        write_atomic(file, json.dumps(found, indent=2) + "\n")
    reference = kinds_by_prompt(pictures_of(base, plan.looked_at, 200))
    if "base" not in found:
        found["base"] = looks(kinds_by_prompt(pictures_of(base, plan.looked_at, 201)), reference)
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
    lines.append(_line("base", "0", found["base"]))
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
    return replace(plan, votes=60, heldout=30, head_steps=2, stages=(1, 2), images=2, seeds=(0,), looked_at=2)
