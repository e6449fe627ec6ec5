"""The policy's own pictures as pairs, lists, likes or winners, for the offline objectives."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffalign.label.rules import Candidates, Pairs, rules
from diffalign.objectives.online_pairs import OnlinePairs
from diffalign.online.collect import Harvest
from diffalign.online.config import OnlineConfig
from diffalign.online.noised import Members, table_of
from diffalign.online.tables import NoisedTable

Rows = list[tuple[int, int, int, float]]
"""(picture, unit, role, score)."""


def pair_table(harvest: Harvest, config: OnlineConfig) -> NoisedTable:
    """Comparison units of an iteration on this process, as the objective wants them, at every draw."""
    objective = config.objective
    assert isinstance(objective, OnlinePairs)
    assert harvest.advantage is not None
    kind, rows = objective.objective.data, Rows()
    for group in harvest.prompt.unique().tolist():
        own = (harvest.prompt == group).nonzero().flatten()
        first = rows[-1][1] + 1 if rows else 0
        if bool(harvest.keep[own].all()):
            rows += _units(kind, harvest, own, first, config)
    image, unit, role, score = zip(*rows, strict=True) if rows else ((), (), (), ())
    number = torch.tensor(unit, dtype=torch.long)
    members = Members(
        image=torch.tensor(image, dtype=torch.long), unit=number, sharing=number,
        role=torch.tensor(role, dtype=torch.long), score=torch.tensor(score),
    )  # fmt: skip
    return table_of(members, harvest, config.noise, paired=True)


def _units(kind: str, harvest: Harvest, own: Tensor, first: int, config: OnlineConfig) -> Rows:
    """Units of the pictures of one prompt, numbered from ``first``; none where all are equal."""
    assert harvest.advantage is not None
    places, value = own.tolist(), harvest.advantage[own].tolist()
    best = max(value)
    if best == min(value):
        return []
    if kind == "pairs":
        pairs = decided(config, harvest, own)
        return [
            (places[i], first + k, role, value[i])
            for k, pair in enumerate(pairs)
            for i, role in zip(pair, (1, -1), strict=True)
        ]
    if kind == "ranking":
        return [(p, first, 1 if v == best else -1, v) for p, v in zip(places, value, strict=True)]
    middle = sum(value) / len(value)
    likes = [(p, 1 if v > middle else -1, v) for p, v in zip(places, value, strict=True)]
    if kind == "winners":
        likes = [(p, 1, v) for p, _, v in likes if v == best]
    return [(p, first + k, role, v) for k, (p, role, v) in enumerate(likes)]


def decided(config: OnlineConfig, harvest: Harvest, own: Tensor) -> Pairs:
    """(winner, loser) among the pictures of one prompt; the rarer ones are told by their latents.

    Rewards count in s.d. among these pictures, by their weights; those of weight 0 do not vote.
    """
    objective = config.objective
    assert isinstance(objective, OnlinePairs)
    assert harvest.rewards is not None
    weight = np.array([r.weight for r in config.rewards])[:, None]  # (K, 1)
    rewards = harvest.rewards[own].T.numpy()  # (K, n)
    spread = rewards.std(1, keepdims=True)
    z = weight * (rewards - rewards.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1.0)
    z = z[weight[:, 0] != 0]
    flat = harvest.run.x0[own.to(harvest.run.x0.device)].float().flatten(1).cpu()
    features = torch.nn.functional.normalize(flat, dim=1).numpy().astype(np.float64)
    prompt = harvest.planned[int(own[0])].prompt
    return rules.get(objective.rule)(Candidates(prompt=prompt, z=z, features=features), config.pairing)
