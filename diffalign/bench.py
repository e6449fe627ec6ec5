"""``diffalign bench train``: what a training step costs here, by phase, beside the usual research script."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from diffalign.data.records import Record
from diffalign.data.transform import Transform, View, decode
from diffalign.train.align import load_recipe, with_canonical_beta
from diffalign.train.config import TrainConfig
from diffalign.train.prepare import build_loader, fitted, read_records
from diffalign.train.progress import Screen
from diffalign.train.run import RunFolder
from diffalign.train.setup import make_accelerator, make_policy
from diffalign.train.trainer import Trainer

WARMUP = 3


def bench(recipe: str, overrides: Sequence[str], steps: int, yardstick: bool) -> Iterator[str]:
    """Yield lines: device, seconds a step, pairs/s, share of each phase, peak memory."""
    config = replace(load_recipe(recipe, overrides), steps=steps + WARMUP, checkpoint_every=0)
    with TemporaryDirectory() as folder:
        trainer, pictures = _trainer(config, RunFolder(root=Path(folder)))
        threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        yield f"device       {trainer.accelerator.device}, {threads}"
        seconds, phases = measure(trainer, steps)
        yield f"step         {seconds:.3f} s for {config.batch} units ({config.batch / seconds:.1f} units/s)"
        yield "share        " + ", ".join(f"{k} {v:.0%}" for k, v in phases.items())
        yield f"peak memory  {peak_gib():.2f} GiB of this process"
        if yardstick and config.objective.data == "pairs":
            usual = usual_script(trainer, pictures, max(3, steps // 4))
            times = f"(VAE and text encoder in the loop): {usual / seconds:.2f} times ours"
            yield f"usual script {usual:.3f} s a step {times}"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """N pictures as they lie on the disk, decoded and brought to the recipe's resolution."""

    prompts: list[str]
    pixels: Tensor
    """(N, 3, R, R) in [-1, 1]."""
    sizes: Tensor
    """(N, 6): original height and width, crop top and left, target height and width."""


def _trainer(config: TrainConfig, run: RunFolder) -> tuple[Trainer, Pictures]:
    accelerator = make_accelerator(config)
    screen = Screen(False, config.steps, config.batch, 1)
    policy = make_policy(config, accelerator.device)
    config = with_canonical_beta(config, policy)
    records = fitted(config, read_records(config, policy, screen), screen.say)
    loader = build_loader(config, policy, records, accelerator, screen)
    policy.set_reference("none" if not config.objective.needs_reference else config.policy.reference)
    pictures = read_pictures(records[: config.batch], config.data.resolution)
    return Trainer(config, policy, loader, accelerator, run), pictures


def measure(trainer: Trainer, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds of a step without phase timing, then the share of each phase with it (which waits for the
    device).
    """
    wait = torch.cuda.synchronize if torch.cuda.is_available() else _nothing
    trainer.policy.denoiser.train()
    for _ in range(WARMUP):
        trainer._advance()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        trainer._advance()
    wait()
    seconds = (time.perf_counter() - start) / steps
    trainer.clock.sync, trainer.clock.seconds = wait, {}
    for _ in range(max(3, steps // 4)):
        trainer._advance()
    trainer.clock.enter("")
    total = sum(trainer.clock.seconds.values())
    return seconds, {k: v / total for k, v in trainer.clock.seconds.items()}


def usual_script(trainer: Trainer, pictures: Pictures, steps: int) -> float:
    """Seconds of a step as research scripts do it: encode pixels and prompts in every step, then the same
    passes.
    """
    policy, process = trainer.policy, trainer.policy.process
    pixels, sizes = pictures.pixels.to(policy.device), pictures.sizes.to(policy.device)
    optimizer = torch.optim.AdamW(policy.trainable().values(), lr=1e-6)
    start = time.perf_counter()
    for step in range(steps):
        mean, _ = policy.encode_images(pixels)
        cond = {
            k: v.to(policy.device)
            for k, v in policy.collate_prompts(policy.encode_prompts(pictures.prompts)).items()
        }
        x0, noise = policy.scale_latents(mean), torch.randn_like(mean)
        u = torch.rand(len(x0), dtype=torch.float64)
        t = trainer.config.timesteps.times(u, process).to(policy.device)
        x_t, target = process.add_noise(x0, noise, t), process.target(x0, noise, t)
        error = (policy.predict(x_t, t, cond, sizes) - target).square().mean((1, 2, 3))
        with policy.reference():
            reference = (policy.predict(x_t, t, cond, sizes) - target).square().mean((1, 2, 3))
        gap = (error - reference).view(-1, 2)
        torch.nn.functional.softplus(gap[:, 0] - gap[:, 1]).mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.trainable().values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            start = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / (steps - 1)


def peak_gib() -> float:
    """Peak memory: of the GPU where there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1024**3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def read_pictures(records: Sequence[Record], resolution: int) -> Pictures:
    """Images of these records, side by side as they are compared; they may differ in size."""
    images = [(r.prompt, i) for r in records for i in r.images]
    transform = Transform(resolution=resolution)
    rows = [transform.apply(decode(i.read(), i.where), View()) for _, i in images]
    return Pictures(
        prompts=[prompt for prompt, _ in images],
        pixels=torch.stack([pixels for pixels, _ in rows]),
        sizes=torch.stack([sizes for _, sizes in rows]),
    )


def _nothing() -> None:
    """Nothing to wait for on a CPU."""
