"""What a pair costs in LPO, SPO, D3PO and DPO: seconds and passes of every network, on the shapes UNet.

python bench/lpo_cost.py --lrm outputs/lrm    # of training/lrm_accuracy.py; a small one is made if missing
python bench/lpo_cost.py --out outputs/cost   # page and json elsewhere; the page must hold the marks
"""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import torch
import typer
from torch import Tensor

from diffalign.evaluate.report import installed_versions, write_atomic
from diffalign.online.groups import Groups
from diffalign.online.run import load_online, training_prompts_of
from diffalign.online.trainer import OnlineTrainer
from diffalign.train.run import RunFolder
from diffalign.train.setup import make_accelerator, make_policy
from diffalign.world.latent_rewards import LatentPlan, trained, write_table

T = TypeVar("T")
SCORER = "pickscore=samples/shapes/scorer"
BRANCHING = {"candidates": 4}
COMMON: dict[str, Any] = {
    "policy": {"model": "samples/shapes/unet", "adapter": {"rank": 16}},
    "data": {"world": {"taste": "large"}},
    "groups": {"prompts": 4, "images": 4, "batch": 16},
    "update": {"updates": 2, "micro_batch": 32},
    "optim": {"learning_rate": 3e-4, "weight_decay": 0.0},
    "evaluate": {"prompts": 0},
    "checkpoint_every": 0,
}
SDE: dict[str, Any] = {
    "steps": 10, "guidance": 4.0, "transition": {"name": "ddim"}, "stochastic": {"which": "all"},
}  # fmt: skip
ODE: dict[str, Any] = SDE | {"transition": {"name": "ode"}, "stochastic": {"which": "none"}}


def recipes(lrm: Path) -> dict[str, dict[str, Any]]:
    """The league's settings, on 16 pictures of ten steps."""
    return {
        "lpo": {
            "objective": {"name": "lpo", "beta": 500.0}, "rollout": SDE | {"branching": BRANCHING},
            "judge": {"scorer": f"lrm={lrm}", "threshold": {"low": 0.1, "high": 0.2}},
        },
        "spo": {
            "objective": {"name": "spo", "beta": 10.0},
            "rollout": SDE
            | {"branching": BRANCHING | {"first": 2}, "stochastic": {"which": "all", "first": 2}},
            "judge": {"scorer": SCORER, "looks": "x0_hat", "threshold": {"low": 0.2, "high": 0.2}},
        },
        "d3po": {
            "objective": {"name": "d3po", "beta": 100.0}, "rollout": SDE, "rewards": [{"scorer": SCORER}],
            "groups": COMMON["groups"] | {"prompts": 8, "images": 2, "same_start": True},
        },
        "online_dpo": {
            "objective": {"name": "online_pairs", "objective": {"name": "dpo", "beta": 1000.0}},
            "rollout": ODE, "rewards": [{"scorer": SCORER}],
            "noise": {"draws": 4, "low": 0.7, "per": "group"},
        },
    }  # fmt: skip


PASSES = {
    "sampling": "policy, sampling",
    "judging": "policy, judging",
    "training": "reference",
    "monitoring": "monitor",
}
"""What a pass of the denoiser without gradient is, by phase."""


class Meter:
    """Passes of the networks and seconds of the processor, by phase; wrapped around a trainer's parts."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        """Put the counters in."""
        self.passes, self.seconds = Counter[str](), Counter[str]()
        self.phases = ["training"]
        policy, collect = trainer.policy, trainer.collect
        policy.predict = self._counted(policy.predict, self._network)  # type: ignore[method-assign]
        policy.decode = self._counted(policy.decode, lambda: "decoder")  # type: ignore[method-assign]
        trainer._drift = self._timed(trainer._drift, "monitoring")  # type: ignore[method-assign]
        trainer.collect = self._timed(collect, "sampling")  # type: ignore[assignment]
        collect._hand_over = self._timed(collect._hand_over, "judging")  # type: ignore[method-assign]
        if collect.background is not None:
            rewards = collect.background.rewards
            for name, reward in list(rewards.items()):
                rewards[name] = self._scored(reward)
        judge = collect.judge
        if judge is not None:
            object.__setattr__(judge, "_some", self._timed(judge._some, "judging"))
            scorer = judge.latent or judge.pixel
            name = "score_latents" if judge.latent is not None else "score_tensor"
            counted = self._counted(getattr(scorer, name), lambda: "reward")
            object.__setattr__(scorer, name, counted)

    def _network(self) -> str:
        if torch.is_grad_enabled():
            return "policy with gradient"
        return PASSES[self.phases[-1]]

    def _counted(self, call: Callable[..., Tensor], name: Callable[[], str]) -> Callable[..., Tensor]:
        def counted(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            self.passes[name()] += len(x)
            return call(x, *rest, **options)

        return counted

    def _timed(self, call: Callable[..., T], phase: str) -> Callable[..., T]:
        """The call, whose own time is taken off that of the phase that it is in."""

        def timed(*given: Any, **options: Any) -> T:
            start = time.process_time()
            self.phases.append(phase)
            try:
                return call(*given, **options)
            finally:
                self.phases.pop()
                spent = time.process_time() - start
                self.seconds[phase] += spent
                self.seconds[self.phases[-1]] -= spent

        return timed

    def _scored(self, reward: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        """A reward of pictures, which works in a thread of its own while pictures are made."""

        def scored(made: Any) -> Tensor:
            start = time.thread_time()
            found = reward(made)
            self.passes["reward"] += len(made.prompts)
            self.seconds["judging"] += time.thread_time() - start
            self.seconds["sampling"] -= time.thread_time() - start
            return found

        return scored


def measure(name: str, recipe: dict[str, Any], iterations: int) -> dict[str, Any]:
    """Iterations of one method; the first is not counted."""
    with TemporaryDirectory() as folder:
        config = load_online(COMMON | recipe | {"steps": iterations + 1, "output": folder})
        accelerator = make_accelerator(config)
        policy = make_policy(config, accelerator.device)
        policy.set_reference(config.policy.reference)
        groups = Groups(training_prompts_of(config), config.groups, config.seed)
        trainer = OnlineTrainer(config, policy, groups, accelerator, RunFolder(root=Path(folder)))
        meter = Meter(trainer)
        rows = judged = 0.0
        for k in range(iterations + 1):
            trainer.step = k
            start = time.process_time()
            figures, _ = trainer._advance()
            if k == 0:
                meter.passes.clear()
                meter.seconds.clear()
                continue
            meter.seconds["training"] += time.process_time() - start
            rows += float(figures["rows"])
            judged += float(figures["pictures"])
    sides = 1 if config.mines else 2  # rows of a pair
    updates = iterations * config.update.updates
    print(f"{name}: {rows / sides:.0f} pairs, {dict(meter.seconds)}", flush=True)
    return {
        "pairs": rows / sides,
        "pictures": judged,
        "seconds": dict(meter.seconds),
        "passes": dict(meter.passes),
        "updates": updates,
    }


def encode_seconds(pictures: int = 16) -> float:
    """Seconds in which the VAE encodes a picture, which offline training without a cache pays."""
    config = load_online(COMMON | recipes(Path("none"))["online_dpo"])
    policy = make_policy(config, torch.device("cpu"))
    x = torch.rand(pictures, 3, policy.side, policy.side) * 2 - 1
    with torch.no_grad():
        policy.encode_images(x)
        start = time.process_time()
        policy.encode_images(x)
    return (time.process_time() - start) / pictures


NETWORKS = ("policy, sampling", "policy, judging", "reward", "decoder", "policy with gradient", "reference")
PHASES = ("sampling", "judging", "training")


def table(found: dict[str, Any]) -> str:
    """Seconds a pair and a step, and passes a pair, of every method."""
    lines = [
        f"| method | pairs | {' | '.join(f'{p}, ms a pair' for p in PHASES)} | all, ms a pair | s a step | "
        "times LPO |",
        "|---" * (5 + len(PHASES)) + "|",
    ]
    spent = {name: sum(one["seconds"][p] for p in PHASES) for name, one in found["methods"].items()}
    whole = {name: spent[name] / one["pairs"] for name, one in found["methods"].items()}
    for name, one in found["methods"].items():
        cells = [f"{1e3 * one['seconds'].get(p, 0.0) / one['pairs']:.0f}" for p in PHASES]
        step = spent[name] / one["updates"]
        ratio = whole[name] / whole["lpo"]
        lines.append(
            f"| `{name}` | {one['pairs']:.0f} | {' | '.join(cells)} | {1e3 * whole[name]:.0f} | {step:.1f} | "
            f"{ratio:.2f} |"
        )
    lines.append(_offline(found, whole["lpo"]))
    lines += ["", f"| passes a pair | {' | '.join(NETWORKS)} |", "|---" * (1 + len(NETWORKS)) + "|"]
    for name, one in found["methods"].items():
        cells = [f"{one['passes'].get(n, 0) / one['pairs']:.1f}" for n in NETWORKS]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    where = found["machine"]
    lines += [
        "",
        f"Seconds of processor time, one thread of {where['processor']}; {found['iterations']} iterations of "
        f"16 pictures after one that is not counted; the watch over drift is left out. "
        f"torch {where['torch']}, tree {found['tree']}, {found['date']}.",
    ]
    return "\n".join(lines)


def _offline(found: dict[str, Any], lpo: float) -> str:
    """Diffusion-DPO: the training of online_dpo on pictures that are there, with the VAE where none is
    cached.
    """
    one = found["methods"]["online_dpo"]
    training = one["seconds"]["training"] / one["pairs"]
    encoded = training + 2 * found["encode_seconds"]
    return (
        f"| Diffusion-DPO, latents cached (not cached) | {one['pairs']:.0f} | 0 | 0 | {1e3 * training:.0f} "
        f"({1e3 * encoded:.0f}) | {1e3 * training:.0f} ({1e3 * encoded:.0f}) | "
        f"{one['seconds']['training'] / one['updates']:.1f} | {training / lpo:.2f} ({encoded / lpo:.2f}) |"
    )


def processor() -> str:
    """Model of the processor, as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(
    lrm: Annotated[Path, typer.Option(help="latent reward model; trained here if missing")] = Path(
        "outputs/lrm"
    ),
    iterations: Annotated[int, typer.Option(help="of 16 pictures each")] = 2,
    out: Annotated[Path, typer.Option(help="folder of lpo_cost.md and .json")] = Path("docs"),
) -> None:
    """Measure, write, print."""
    torch.set_num_threads(1)
    if not (lrm / "config.json").is_file():
        from diffalign.policy import load_policy

        trained(load_policy("samples/shapes/unet"), LatentPlan(votes=500, steps=50), lrm)
    versions = installed_versions()
    found: dict[str, Any] = {
        "machine": {"processor": processor(), "torch": versions.get("torch", "")},
        "tree": versions.get("commit", "unknown")[:12],
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "iterations": iterations,
        "encode_seconds": encode_seconds(),
        "methods": {name: measure(name, recipe, iterations) for name, recipe in recipes(lrm).items()},
    }
    write_atomic(out / "lpo_cost.json", json.dumps(found, indent=2) + "\n")
    write_table(out / "lpo_cost.md", table(found), "lpo cost")
    typer.echo(table(found))


if __name__ == "__main__":
    typer.run(main)
