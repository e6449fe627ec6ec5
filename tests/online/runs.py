"""Tiny online runs for tests, of every objective; also as a process of its own.

python -m tests.online.runs FAMILY FOLDER OUTPUT [--kill WHERE:CALL] [--resume DIR] [--objective NAME]
[key=value ...] [-- ANOTHER RUN]
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.objectives.steps import online_objectives
from diffalign.train.align import align
from diffalign.train.finish import Run
from scorers.base import ScorerBase
from tests.tiny import tiny_folder

PROMPTS = ("a red circle", "a blue square", "a green star", "a white ring", "a black dot", "a pink cross")
BRIGHT = "tests.online.runs:Brightness"
LATENT = "tests.online.runs:LatentMean"


class Brightness(ScorerBase):
    """Mean of a picture: untrained models' grey pictures differ in it."""

    name = "brightness"

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Brightness:
        """Nothing to load."""
        return cls()

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Scorer."""
        return 100 * x01.mean((1, 2, 3))


class Broken(Brightness):
    """Fails on the process of this rank."""

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """See Scorer."""
        if os.environ.get("RANK", "0") == os.environ.get("BROKEN_RANK", "0"):
            raise ConnectionError("the reward server is gone")
        return super().score_tensor(x01, prompts)


class LatentMean:
    """A judge of noisy latents: their mean, in logits that mining can tell apart."""

    name, version, dims, range, higher_better = "latent_mean", "1", ("mean",), (-1e9, 1e9), True
    needs, kind, space, differentiable = frozenset({"timestep"}), "pointwise", "latent", True
    licence, citation = "none", "none"

    def __init__(self, vae_id: str = "") -> None:
        self.vae_id = vae_id
        self.asked: list[Tensor] = []

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> LatentMean:
        """Nothing to load."""
        return cls()

    def score_latents(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """See LatentScorer."""
        assert len(latents) == len(timesteps) == len(prompts)
        self.asked.append(timesteps)
        return 40 * latents.mean((1, 2, 3))


EXTRA: dict[str, dict[str, Any]] = {
    "spo": {"judge": {"scorer": BRIGHT, "looks": "x0_hat", "threshold": {"low": 0.0, "high": 0.0}}},
    "lpo": {"judge": {"scorer": LATENT, "threshold": {"low": 0.0, "high": 0.0}}},
    "grpo_guard": {"rollout": {"recorder": {"means": True}}},
    "flow_dppo": {"rollout": {"recorder": {"means": True}}},
    "d3po": {"groups": {"same_start": True}},
    "dgpo": {"noise": {"per": "group"}},
    "dense_reward_pl": {"objective": {"clip": 0.1}},  # or the second update finds all ratios clipped
    "online_pairs": {"objective": {"objective": {"name": "dpo", "beta": 500.0}}},
}
"""What an objective needs beyond the common recipe."""


def kind_of(name: str) -> str:
    """What an objective sees."""
    return online_objectives.get(name).batch


def recipe(name: str, family: str, folder: Path, output: Path, model: str = "") -> dict[str, Any]:
    """Two iterations of an objective with LoRA on pictures of four steps; nothing is evaluated."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = folder / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("\n".join(PROMPTS))
    mines, steps = "judge" in EXTRA.get(name, {}), kind_of(name) == "steps"
    common: dict[str, Any] = {
        "policy": {"model": model or tiny_folder(family, folder), "adapter": {"rank": 2, "alpha": 4}},
        "objective": {"name": name},
        "data": {"path": str(prompts), "cache": str(folder / "cache")},
        "rollout": {
            "steps": 4,
            "guidance": 2.0 if steps else 1.0,
            "transition": {"name": "flow_sde" if family == "sd3" else "ddim"},
            "stochastic": {"which": "all" if steps else "none"},
            "branching": {"candidates": 3 if mines else 1},
        },
        "groups": {"prompts": 2, "images": 4, "batch": 8},
        "rewards": [] if mines else [{"scorer": BRIGHT}],
        "noise": {"draws": 2},
        "update": {"updates": 2, "micro_batch": 8},
        "optim": {"learning_rate": 1e-2},
        "steps": 2,
        "checkpoint_every": 1,
        "output": str(output),
        "evaluate": {"prompts": 0},
    }
    return merged(common, EXTRA.get(name, {}))


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Blocks of both, the second's values where both have one."""
    found = dict(one)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def online_run(name: str, family: str, folder: Path, output: Path, *overrides: str, **options: Any) -> Run:
    """Train in this process."""
    return align(recipe(name, family, folder, output), *overrides, **options)


# ---------------------------------------------------------------------- processes that are killed


def kill_at(where: str, call: int) -> None:
    """Arrange a kill -9 of this process: at the n-th step of rollouts, or in the n-th call of the reward."""
    from diffalign.diffusion import rollout
    from tests.online import runs  # the scorer is of this module, and not of __main__

    owner, name = {"rollout": (rollout, "_recorded"), "reward": (runs.Brightness, "score_tensor")}[where]
    original, calls = getattr(owner, name), []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(owner, name, counted)


def main() -> None:
    """See the module."""
    torch.set_num_threads(1)
    words: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        words.append([]) if word == "--" else words[-1].append(word)
    for run in words:
        run_of(run)


def run_of(words: list[str]) -> None:
    """One run in this process."""
    family, folder, output, *rest = words
    name, resume, overrides = "grpo", None, []
    while rest:
        word = rest.pop(0)
        if word == "--kill":
            where, _, call = rest.pop(0).partition(":")
            kill_at(where, int(call))
        elif word == "--resume":
            resume = Path(rest.pop(0))
        elif word == "--objective":
            name = rest.pop(0)
        else:
            overrides.append(word)
    online_run(name, family, Path(folder), Path(output), *overrides, resume=resume)


if __name__ == "__main__":
    main()
