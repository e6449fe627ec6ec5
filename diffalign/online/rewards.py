"""Rewards of pictures, scored in the background while further pictures are made."""

from __future__ import annotations

import hashlib
import json
import math
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scorers
from diffalign.assets import asset
from diffalign.diffusion.corrupt import draw_seed, seeded_noise
from diffalign.diffusion.timesteps import Uniform
from diffalign.online.blocks import RewardConfig
from diffalign.online.win_rate import WinRate
from diffalign.policy import Policy
from scorers.latent import LatentScorer, load_latent
from scorers.protocol import Scorer


class RewardError(RuntimeError):
    """A reward did not answer, or not as it must."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A batch of pictures that wait for their rewards."""

    latents: Tensor
    """(B, C, h, w) clean scaled latents."""
    pictures: Tensor | None
    """(B, 3, H, W) in [0, 1]; None where no reward looks at pictures, so that none are decoded."""
    prompts: tuple[str, ...]
    group: tuple[int, ...]
    """Place of each picture's prompt in the iteration: two prompts of the same words are two groups."""

    def decoded(self) -> Tensor:
        """The pictures.

        Raises:
            ValueError: they were not decoded.
        """
        if self.pictures is None:
            raise ValueError("the batch holds latents alone, and this reward looks at pictures")
        return self.pictures


Reward = Callable[[Made], Tensor]
"""(B,) rewards of a batch, higher is better."""


def load_reward(config: RewardConfig, policy: Policy) -> Reward:
    """Load what a reward needs.

    Raises:
        RegistryError: no scorer has this name.
        FileNotFoundError: its weights are not there.
        ValueError: it cannot be used as the recipe says.
    """
    if config.looks == "latents":
        return LatentReward(load_latent_scorer(config.scorer, policy), policy, config.noise)
    scorer = load_pixel_scorer(config.scorer, policy.device)
    if config.compares and scorer.kind == "groupwise":
        return GroupReward(scorer, policy.device)
    if config.compares:
        return WinRate(scorer, policy.device, by_pairs=config.among == "pairs")
    if scorer.kind != "pointwise":
        raise ValueError(f"reward {config.scorer} is {scorer.kind}: it compares pictures, so set among=group")
    return PixelReward(scorer, policy.device)


def load_pixel_scorer(spec: str, device: torch.device) -> Scorer:
    """A scorer of pictures by its word; weights may be a packaged asset."""
    given = scorers.Spec.parse(spec)
    weights = scorers.find_weights(given.name, asset(given.weights) if given.weights else None)
    scorer = scorers.load(given.name, weights, device, options=given.options)
    if scorer.space != "pixel":
        raise ValueError(f"scorer {given.name} looks at latents: set looks=latents")
    return scorer


def load_latent_scorer(spec: str, policy: Policy) -> LatentScorer:
    """A scorer of noisy latents by its word.

    Raises:
        ValueError: it was trained on latents of another VAE.
    """
    given = scorers.Spec.parse(spec)
    scorer = load_latent(given.name, asset(given.weights) if given.weights else None, policy.device)
    known = getattr(scorer, "vae_id", "")
    if known and known != policy.encoder_id("vae"):
        raise ValueError(
            f"latent reward {spec} was trained on latents of another VAE: its scores mean nothing here; take "
            "one of the same VAE, or a scorer of pictures"
        )
    check = getattr(scorer, "check_policy", None)
    if check is not None:  # also of another process: a UNet and a DiT may share a VAE
        check(policy.encoder_id("vae"), "flow" if policy.process.is_flow else "vp")
    return scorer


class PixelReward:
    """Score of each picture."""

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        """Keep the scorer."""
        self.scorer, self.device = scorer, device

    @torch.no_grad()
    def __call__(self, made: Made) -> Tensor:
        """See Reward."""
        found = self.scorer.score_tensor(made.decoded().to(self.device), list(made.prompts))
        return found if self.scorer.higher_better else -found


class GroupReward:
    """Scores that a groupwise scorer gives the pictures of a prompt; a batch must hold whole groups."""

    def __init__(self, scorer: Scorer, device: torch.device) -> None:
        """Keep the scorer."""
        self.one = PixelReward(scorer, device)

    def __call__(self, made: Made) -> Tensor:
        """See Reward."""
        pictures, group = made.decoded(), torch.tensor(made.group)
        out = torch.empty(len(group))
        for number in group.unique():
            own = (group == number).nonzero().flatten()
            prompts = tuple(made.prompts[i] for i in own.tolist())
            out[own] = self.one(
                replace(made, pictures=pictures[own.to(pictures.device)], prompts=prompts)
            ).cpu()
        return out


class LatentReward:
    """Score of each latent, noised to one time by one and the same noise: a score is the latent's alone,
    whatever batch or process it is in.
    """

    def __init__(self, scorer: LatentScorer, policy: Policy, noise: float) -> None:
        """Keep the scorer and the process of its latents."""
        self.scorer, self.process, self.noise, self.device = scorer, policy.process, noise, policy.device

    @torch.no_grad()
    def __call__(self, made: Made) -> Tensor:
        """See Reward."""
        x0 = made.latents.to(self.device)
        u = torch.full((len(x0),), self.noise).double()
        t = Uniform().times(u, self.process).to(self.device)
        noise = seeded_noise([draw_seed("latent reward")] * len(x0), x0)
        x = self.process.add_noise(x0, noise, t) if self.noise else x0
        time = t if self.noise else torch.zeros_like(t)
        found = self.scorer.score_latents(x, self.process.model_time(time), list(made.prompts))
        return found if self.scorer.higher_better else -found


class RewardLog:
    """Rewards on disk by the content of what they judge: a killed run does not ask for them again."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Rewards of one process."""
        self.folder, self.rank = folder, rank
        self.file, self.known = folder, dict[str, list[float]]()

    def open(self, iteration: int) -> None:
        """Turn to an iteration; what was scored of it before a kill, by whatever processes, is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / f"iteration-{iteration:06d}-{self.rank}.jsonl"
        self.known = {}
        for file in sorted(self.folder.glob(f"iteration-{iteration:06d}-*.jsonl")):
            self._read(file)
        if self.file.exists() and not self.file.read_bytes().endswith(b"\n"):
            with self.file.open("a") as lines:
                lines.write("\n")  # or the next line would go on where the kill cut the last one

    def _read(self, file: Path) -> None:
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # cut short by a kill: it is scored again
                continue
            self.known[row["key"]] = [float("nan") if v is None else v for v in row["rewards"]]

    def get(self, keys: Sequence[str]) -> Tensor | None:
        """(B, K) rewards of a batch, or None where one is missing."""
        if any(key not in self.known for key in keys):
            return None
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float64)

    def add(self, keys: Sequence[str], rewards: Tensor, made: Made) -> None:
        """Write the rewards of a batch."""
        rows = zip(keys, made.prompts, rewards.tolist(), strict=True)
        with self.file.open("a") as lines:
            for key, prompt, values in rows:
                plain = [v if math.isfinite(v) else None for v in values]
                lines.write(json.dumps({"key": key, "prompt": prompt, "rewards": plain}) + "\n")


def content_keys(made: Made, specs: Sequence[str]) -> list[str]:
    """Digest of each picture's latent, its prompt and the rewards that are asked."""
    raw = made.latents.detach().float().cpu().contiguous()
    return [
        hashlib.sha256(json.dumps([prompt, *specs]).encode() + row.numpy().tobytes()).hexdigest()[:32]
        for row, prompt in zip(raw, made.prompts, strict=True)
    ]


class Background:
    """Scores batches in a thread of its own, in their order; never holds up the end of the program."""

    def __init__(self, rewards: dict[str, Reward], log: RewardLog, patience: float) -> None:
        """Start the thread."""
        self.rewards, self.log, self.patience = rewards, log, patience
        self._asked: queue.Queue[Made] = queue.Queue()
        self._found: queue.Queue[Tensor | BaseException] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, made: Made) -> None:
        """Hand over a batch; ``collect`` gives its rewards."""
        self._asked.put(made)

    def collect(self, batches: int) -> Tensor:
        """(n, K) rewards of the batches handed over since the last time.

        Raises:
            RewardError: one failed or took too long, or did not answer for each picture.
        """
        found = []
        for _ in range(batches):
            try:
                value = self._found.get(timeout=self.patience)
            except queue.Empty:
                raise RewardError(
                    f"no rewards came within {self.patience:g} s (patience) from "
                    f"{', '.join(self.rewards)}: look at the reward server, or raise patience"
                ) from None
            if isinstance(value, BaseException):
                raise RewardError(str(value)) from value
            found.append(value)
        return torch.cat(found)

    def _work(self) -> None:
        while True:
            made = self._asked.get()
            try:
                self._found.put(self._scored(made))
            except Exception as error:
                self._found.put(error)

    def _scored(self, made: Made) -> Tensor:
        keys = content_keys(made, list(self.rewards))
        known = self.log.get(keys)
        if known is None:
            asked = torch.stack([self._one(name, r, made) for name, r in self.rewards.items()], 1)
            known = asked.where(asked.isfinite(), torch.nan)  # as it will be read again
            self.log.add(keys, known, made)
        return known

    def _one(self, name: str, reward: Reward, made: Made) -> Tensor:
        """(B,) float64 rewards of one scorer on the host."""
        try:
            found: Any = reward(made)
        except Exception as error:
            raise RewardError(f"reward {name} failed: {type(error).__name__}: {error}") from error
        if not isinstance(found, Tensor) or found.shape != (len(made.prompts),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise RewardError(
                f"reward {name} answered {shape} for {len(made.prompts)} pictures; one number each is needed"
            )
        return found.detach().double().cpu()
