"""The learned baseline of DPOK: a small network that foretells a picture's reward at each step on its way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from diffalign.device import send
from diffalign.diffusion.corrupt import draw_seed
from diffalign.diffusion.rollout import latent_shape
from diffalign.objectives.advantages import is_flat, standard_deviation
from diffalign.objectives.value import LearnedValue
from diffalign.online.collect import Harvest
from diffalign.online.tables import StepTable
from diffalign.policy import Policy
from diffalign.policy.family import Cond
from diffalign.train.checkpoint import CheckpointError, pack_optimizer, unpack_optimizer

SIDE = 16
"""Larger latents are averaged down to this side, so that network and replay are small for any model."""
WAVES = 16
"""Cosines of the time."""
WIDTH = 256
"""Features inside the network."""


# ---------------------------------------------------------------------- what is seen


@dataclass(frozen=True, kw_only=True)
class Seen:
    """N steps of pictures as the network sees them, all fp32."""

    x: Tensor
    """(N, C, h, w) noisy latents, no side above SIDE."""
    t: Tensor
    """(N,) share of the time, 1 is noise."""
    c: Tensor
    """(N, D) of the prompt."""
    reward: Tensor
    """(N,) of the picture."""

    def take(self, rows: Tensor | slice) -> Seen:
        """Some of the steps."""
        return Seen(**{k: v[rows] for k, v in self.tensors().items()})

    def to(self, device: torch.device) -> Seen:
        """The same on a device."""
        return Seen(**{k: send(v, device) for k, v in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Its fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def in_a_row(parts: Sequence[Seen]) -> Seen:
    """The steps of all parts."""
    every = [part.tensors() for part in parts]
    return Seen(**{k: torch.cat([one[k] for one in every]) for k in every[0]})


def text_of(cond: Cond) -> Tensor:
    """(P, D) fp32 summaries of P prompts: pooled, where the model has that, else the mean over tokens."""
    pooled = cond.get("pooled")
    return (cond["text"].float().mean(1) if pooled is None else pooled.float()).detach()


class ValueNetwork(nn.Module):
    """Latents by two convolutions, time and prompt by a layer each; a new one answers 0."""

    def __init__(self, shape: tuple[int, int, int], text: int, seed: int) -> None:
        """Draw the weights.

        Args:
            shape: (C, h, w) of the latents, no side above SIDE.
            text: D of the prompts.
            seed: of the weights.
        """
        super().__init__()
        (channels, high, wide), inner = shape, WIDTH // 4
        places = math.ceil(high / 2) * math.ceil(wide / 2)
        self.look = nn.Sequential(
            nn.Conv2d(channels, inner, 3, padding=1), nn.SiLU(),
            nn.Conv2d(inner, inner, 3, stride=2, padding=1), nn.SiLU(),
            nn.Flatten(), nn.Linear(inner * places, WIDTH),
        )  # fmt: skip
        self.time = nn.Linear(WAVES, WIDTH)
        self.text = nn.Sequential(nn.LayerNorm(text, elementwise_affine=False), nn.Linear(text, WIDTH))
        self.out = nn.Sequential(
            nn.SiLU(), nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1, bias=False)
        )
        self._draw(torch.Generator().manual_seed(draw_seed("value network", seed)))

    def _draw(self, generator: torch.Generator) -> None:
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            else:
                nn.init.zeros_(weight)
        nn.init.zeros_(list(self.parameters())[-1])

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        """(N,) values of N steps; see Seen."""
        waves = torch.cos(torch.pi * t[:, None] * torch.arange(WAVES, device=t.device))
        values: Tensor = self.out(self.look(x) + self.time(waves) + self.text(c))
        return values.squeeze(1)


# ---------------------------------------------------------------------- the baseline


class ValueBaseline:
    """Takes V(x_t, t, c) off the rewards of an iteration's steps (DPOK, arXiv:2305.16381).

    All processes see the steps of all, in one order, and so hold the same network. It learns rewards less
    their mean over the replay, in units of their standard deviation there: the published learning rate is for
    a reward of mean 0 and deviation 1.
    """

    def __init__(
        self, options: LearnedValue, policy: Policy, side: int, seed: int, accelerator: Accelerator
    ) -> None:
        """Make a network for the latents of pictures of ``side`` pixels; ``seed`` is the run's."""
        self.options, self.seed, self.accelerator = options, seed, accelerator
        self.process, self.device = policy.process, policy.device
        channels, high, wide = latent_shape(policy, side)
        text = text_of(policy.collate_prompts(policy.encode_prompts([""]))).shape[1]
        network = ValueNetwork((channels, min(high, SIDE), min(wide, SIDE)), text, seed)
        self.network: nn.Module = network.to(self.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=options.learning_rate)
        self.replay: Seen | None = None

    def __call__(
        self, table: StepTable, harvest: Harvest, iteration: int
    ) -> tuple[StepTable, dict[str, Tensor]]:
        """Train the network, and take its values off the advantages of ``table``, which are rewards yet.

        All processes take part, each with its own rows.

        Returns:
            The table, and figures of all processes: ``value_loss``, the mean squared error over the updates
            (of the reward itself), and ``explained_variance``, 1 - Var(r - V) / Var(r) of the new steps
            before the network has learnt from them; NaN where all rewards are equal.
        """
        own = self.seen(table, harvest)
        parts: list[Seen] = gather_object([own.take(table.weight != 0)])  # rows of dropped prompts are zeros
        fresh = in_a_row(parts).to(self.device)
        self.replay = fresh if self.replay is None else in_a_row([self.replay, fresh])
        self.replay = self.replay.take(slice(-self.options.replay, None))
        foretold = self.values(fresh)
        loss = self._learn(iteration)
        left = own.reward - self.values(own.to(self.device)).cpu()
        told = {"value_loss": loss, "explained_variance": explained(fresh.reward, foretold)}
        return replace(table, advantage=left), told

    def seen(self, table: StepTable, harvest: Harvest) -> Seen:
        """The rows of a table on the host."""
        assert table.advantage is not None
        high, wide = table.x.shape[2:]
        times = harvest.run.sampler.schedule.times[table.step].float()
        return Seen(
            x=F.adaptive_avg_pool2d(table.x.float(), (min(high, SIDE), min(wide, SIDE))),
            t=times if self.process.is_flow else times / self.process.steps,
            c=text_of(harvest.guided.cond).cpu()[table.prompt],
            reward=table.advantage.float(),
        )

    @torch.no_grad()
    def values(self, steps: Seen) -> Tensor:
        """(N,) foretold rewards."""
        parts = [steps.take(slice(i, i + 1024)) for i in range(0, len(steps.t), 1024)]
        centre, scale = self._units()
        return torch.cat([centre + scale * self.network(p.x, p.t, p.c) for p in parts])

    def _units(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the rewards in the replay."""
        assert self.replay is not None
        reward = self.replay.reward
        spread = reward.new_ones(()) if is_flat(reward) else standard_deviation(reward, unbiased=False)
        # exact where all are equal: Adam would blow rounding errors up to full steps
        return reward[0] + (reward - reward[0]).mean(), spread

    def _learn(self, iteration: int) -> Tensor:
        """Scalar mean of the updates' squared errors, of the reward itself."""
        (centre, scale), losses = self._units(), list[Tensor]()
        for k in range(self.options.inner_steps):
            some = self._drawn(iteration, k)
            loss = (self.network(some.x, some.t, some.c) - (some.reward - centre) / scale).square().mean()
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        self._agree()
        return torch.stack(losses).mean() * scale**2

    def _drawn(self, iteration: int, k: int) -> Seen:
        """Steps of the replay for an update."""
        assert self.replay is not None
        generator = torch.Generator().manual_seed(draw_seed("value", self.seed, iteration, k))
        rows = torch.randperm(len(self.replay.t), generator=generator)[: self.options.batch]
        return self.replay.take(send(rows, self.device))

    def _agree(self) -> None:
        """The main process's weights on all, should devices have rounded differently."""
        if self.accelerator.num_processes > 1:
            whole = parameters_to_vector(self.network.parameters()).detach()
            vector_to_parameters(broadcast(whole), self.network.parameters())

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        """Weights, optimizer and replay, for the checkpoint."""
        named = dict(self.network.named_parameters())
        found = {f"weight/{k}": p.detach() for k, p in named.items()}
        found |= {f"optim/{k}": v for k, v in pack_optimizer(self.optimizer, named)[0].items()}
        kept = {} if self.replay is None else self.replay.tensors()
        return found | {f"replay/{k}": v for k, v in kept.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a checkpoint's tensors.

        Raises:
            CheckpointError: they are of a network for other latents or prompts.
        """
        named = dict(self.network.named_parameters())
        odd = [
            k for k, p in named.items() if f"weight/{k}" not in state or state[f"weight/{k}"].shape != p.shape
        ]
        if odd:
            raise CheckpointError(
                f"the checkpoint's value network does not fit, first {odd[0]!r}: resume with the recipe of "
                "that run (config.yaml beside it)"
            )
        for name, parameter in named.items():
            parameter.copy_(state[f"weight/{name}"])
        unpack_optimizer(self.optimizer, named, _part(state, "optim/"), {})
        kept = _part(state, "replay/")
        self.replay = Seen(**{k: v.to(self.device) for k, v in kept.items()}) if kept else None


def explained(reward: Tensor, value: Tensor) -> Tensor:
    """Scalar 1 - Var(r - V) / Var(r) of (N,) rewards and values; NaN where all rewards are equal."""
    if is_flat(reward):
        return reward.new_full((), torch.nan)
    return 1 - (reward - value).var(unbiased=False) / reward.var(unbiased=False)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
