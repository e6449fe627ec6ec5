"""Tiny runs for tests: real rendered pictures with votes, a 1 MB pipeline, a few steps; also as a process of
its own.

python -m tests.train.runs FAMILY FOLDER OUTPUT [--kill STEP:WHERE] [--resume DIR] [key=value ...]
[-- ANOTHER RUN]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffalign.data.records import BytesImage, Record
from diffalign.train.align import align
from diffalign.train.finish import Run
from diffalign.world.grammar import single_prompts
from diffalign.world.shapes import draw
from scorers.base import ScorerBase
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[2]


class Brightness(ScorerBase):
    """Judge to whom the grey pictures of untrained models differ: their mean."""

    name = "brightness"

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Brightness:
        """Nothing to load."""
        return cls()

    def score_tensor(self, x01: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """See Scorer."""
        return x01.mean((1, 2, 3))


def records(n: int = 8) -> list[Record]:
    """Pairs of rendered pictures of training prompts; the first is always preferred."""
    rng = np.random.default_rng(0)
    prompts = single_prompts("train")[:n]
    pictures = [(draw(prompts, rng) * 255).byte().permute(0, 2, 3, 1).numpy() for _ in range(2)]
    return [
        Record(
            prompt=str(p),
            images=(BytesImage.from_array(pictures[0][i]), BytesImage.from_array(pictures[1][i])),
            kind="pair",
            values=(1.0, 0.0),
        )
        for i, p in enumerate(prompts)
    ]


def recipe(family: str, folder: Path, output: Path) -> dict[str, Any]:
    """Ten steps of DPO with LoRA; pictures are not evaluated."""
    return {
        "policy": {"model": tiny_folder(family, folder), "adapter": {"rank": 2, "alpha": 4}},
        "objective": {"name": "dpo", "beta": 500.0},
        "data": {"path": "in memory", "resolution": 64, "cache": str(folder / "cache")},
        "optim": {"learning_rate": 1e-3},
        "steps": 10,
        "batch": 4,
        "ema": 0.9,
        "checkpoint_every": 4,
        "output": str(output),
        "evaluate": {"prompts": 0},
    }


def tiny_run(family: str, folder: Path, output: Path, *overrides: str, resume: Path | None = None) -> Run:
    """Train in this process."""
    return align(recipe(family, folder, output), *overrides, records=records(), resume=resume)


def launch(
    processes: int, *arguments: str, config: str | None = None, module: str = "tests.train.runs"
) -> None:
    """Train in processes of their own, one or several; ``config`` is a file of training/accelerate."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", module]
    if processes > 1:
        environment["ACCELERATE_USE_CPU"] = "true"
        launcher = ["-m", "accelerate.commands.launch", "--num_processes", str(processes)]
        launcher += ["--main_process_port", "0"]
        launcher += ["--config_file", f"training/accelerate/{config}"] if config else ["--multi_gpu"]
        command = [sys.executable, *launcher, "-m", module]
    done = subprocess.run(
        [*command, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def kill_at(step: int, where: str) -> None:
    """Arrange a kill -9 of this process: in the middle of a step, or between writing and renaming a
    checkpoint.
    """
    from diffalign.train import checkpoint, trainer

    if where == "step":
        original = trainer.Trainer._clip

        def clip(self: trainer.Trainer) -> Any:
            if self.step + 1 == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self)

        trainer.Trainer._clip = clip  # type: ignore[method-assign]
        return

    def replace(source: Path, target: Path) -> None:
        if checkpoint.name_of(step) in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(source, target)

    checkpoint.os.replace = replace  # type: ignore[assignment]


def main() -> None:
    """See the module."""
    words: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        words.append([]) if word == "--" else words[-1].append(word)
    for run in words:
        run_of(run)


def run_of(words: list[str]) -> None:
    """One run in this process."""
    family, folder, output, *rest = words
    resume, overrides, cut_up = None, [], False
    while rest:
        word = rest.pop(0)
        if word == "--kill":
            step, _, where = rest.pop(0).partition(":")
            kill_at(int(step), where)
        elif word == "--cut-up":
            cut_up = True
        elif word == "--resume":
            resume = Path(rest.pop(0))
        else:
            overrides.append(word)
    run = tiny_run(family, Path(folder), Path(output), *overrides, resume=resume)
    found = {hasattr(p, "full_tensor") for n in run.policy.networks for p in n.parameters()}
    assert found == {cut_up}, "the launcher did not cut the model up"


if __name__ == "__main__":
    main()
