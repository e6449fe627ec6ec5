"""Advantages by several rewards, and what happens to rewards that are not finite.

Rewards are (N, K): K rewards of N images. All arithmetic is in float64, whatever comes in. The images of a
prompt with a reward that is not finite get no advantage at all, and are reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffalign.objectives.advantages import Rule, groups_of, is_flat, standard_deviation
from diffalign.objectives.base import State


@dataclass(frozen=True, kw_only=True)
class Advantages:
    """What a rule made of rewards."""

    value: Tensor
    """(N,) float64; 0 at images of dropped groups."""
    keep: Tensor
    """(N,) bool, False at images of groups that were dropped for a reward that is not finite."""
    flat: Tensor
    """(N,) bool, whether the group's rewards have no spread."""

    def report(self, group: Tensor) -> dict[str, float]:
        """Number of groups, and shares of those dropped and of those without spread."""
        kinds = group.unique()
        dropped, flat = group[~self.keep].unique(), group[self.flat & self.keep].unique()
        count = len(kinds)
        return {"groups": count, "dropped": len(dropped) / count, "zero_spread": len(flat) / count}


Combine = Literal["rewards", "advantages", "gdpo", "pareto", "gated"]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How several rewards become one advantage."""

    how: Combine = "rewards"
    """rewards: the rule on their weighted sum. advantages: the weighted sum of each reward's advantages.
    gdpo: the same, standardised over the batch. pareto: Parrot's, the reward itself that the image's prompt
    asked for (rewards[k].word), where no image of the batch beats it in all, else 0. gated: the first reward
    is a check that is passed above 0.5; the others' advantages are formed among the images that pass, the
    check's among all."""
    weights: tuple[float, ...] = ()
    """One weight for each reward; none is 1 each."""
    unbiased: bool = True
    """gdpo: standard deviation of the batch as Pref-GRPO has it (with eps 1e-8), or of the population."""

    def weigh(self, rewards: Tensor) -> Tensor:
        """(K,) weights.

        Raises:
            ValueError: their number is not that of the rewards.
        """
        count = rewards.shape[1]
        if self.weights and len(self.weights) != count:
            raise ValueError(f"there are {count} rewards and {len(self.weights)} weights: give one for each")
        return torch.tensor(self.weights or (1.0,) * count).to(rewards)


def advantages_of(
    rewards: Tensor,
    group: Tensor,
    rule: Rule,
    combination: Combination | None = None,
    *,
    condition: Tensor | None = None,
    state: State | None = None,
) -> Advantages:
    """Advantages of N images by K rewards.

    Args:
        rewards: (N, K) or (N,) rewards.
        group: (N,) int64 prompts.
        rule: how one reward becomes an advantage.
        combination: what is done with several.
        condition: (N,) int64 reward that each image was asked for (``pareto``).
        state: statistics that outlive the batch (``ddpo``), kept by the checkpoint.

    Raises:
        ValueError: numbers of rows or weights do not agree, or what ``pareto`` or ``gated`` need is missing.
    """
    table = (rewards[:, None] if rewards.ndim == 1 else rewards).double()
    if len(table) != len(group):
        raise ValueError(
            f"{len(table)} rewards for {len(group)} images: the reward must answer for each image"
        )
    members = groups_of(group)
    bad = (members & ~table.isfinite().all(1)).any(1)  # (U,)
    keep = ~(members & bad[:, None]).any(0)
    value, flat = torch.zeros(len(table)).to(table), torch.zeros_like(keep)
    if bool(keep.any()):
        rest = None if condition is None else condition[keep]
        value[keep] = _combined(table[keep], group[keep], rule, combination or Combination(), rest, state)
        for own in members[~bad]:
            flat[own] = all(is_flat(column[own]) for column in table.T)
    return Advantages(value=value, keep=keep, flat=flat)


def _combined(
    rewards: Tensor,
    group: Tensor,
    rule: Rule,
    combination: Combination,
    condition: Tensor | None,
    state: State | None,
) -> Tensor:
    weights, how = combination.weigh(rewards), combination.how
    if how == "pareto":
        return pareto_weights(rewards, condition)
    if how == "rewards":
        return rule.of(rewards @ weights, group, state)
    if how == "gated":
        return _gated(rewards, group, rule, weights)
    each = torch.stack([_of_one(rule, rewards, k, group, state) for k in range(rewards.shape[1])], 1)
    total = each @ weights
    if how == "advantages" or is_flat(total):
        return total
    return (total - total.mean()) / (
        standard_deviation(total, combination.unbiased) + 1e-8 * combination.unbiased
    )


def _of_one(rule: Rule, rewards: Tensor, k: int, group: Tensor, state: State | None) -> Tensor:
    """(N,) advantages by the k-th reward, whose statistics are apart from those of the others."""
    prefix = f"reward{k}/"
    kept = {} if state is None else dict(state)
    own: State = {n.removeprefix(prefix): v for n, v in kept.items() if n.startswith(prefix)}
    out = rule.of(rewards[:, k], group, own)
    if state is not None:
        state.update({prefix + n: v for n, v in own.items()})
    return out


def _gated(rewards: Tensor, group: Tensor, rule: Rule, weights: Tensor) -> Tensor:
    """Style counts only among images that pass the check: it can never make up for failing it."""
    if rewards.shape[1] < 2:
        raise ValueError("combination gated needs the check's reward first and at least one other")
    passed = rewards[:, 0] > 0.5
    out = weights[0] * rule.of(passed.to(rewards.dtype), group, None)
    for k in range(1, rewards.shape[1]):
        out[passed] += weights[k] * rule.of(rewards[passed, k], group[passed], None) if passed.any() else 0
    return out


def nondominated(rewards: Tensor) -> Tensor:
    """(N,) bool, whether no other of (N, K) rows is at least as high in all rewards and higher in one."""
    above = (rewards[None] >= rewards[:, None]).all(2) & (rewards[None] > rewards[:, None]).any(2)
    return ~above.any(1)


def pareto_weights(rewards: Tensor, condition: Tensor | None) -> Tensor:
    """(N,) weights r_k(i) / |P| of the images in the front P of the batch, 0 for others (Parrot, 2401.05675).

    Args:
        rewards: (N, K).
        condition: (N,) int64 reward k that each image's prompt asked for.

    Raises:
        ValueError: there is no condition.
    """
    if condition is None:
        raise ValueError("combination pareto needs the reward that each image's prompt asked for")
    front = nondominated(rewards)
    own = rewards.gather(1, condition[:, None]).squeeze(1)
    return torch.where(front, own / front.sum(), torch.zeros_like(own))
