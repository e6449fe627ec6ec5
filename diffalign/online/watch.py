"""A watch over online runs: does the policy drift, and does the trained reward still mean anything?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffalign.online.blocks import StopConfig

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Watch:
    """Warns of groups that teach nothing, and of reward hacking, which it can end a run for.

    The thresholds are habits: half the groups without spread, or half the ratios clipped, for ``patience``
    iterations.
    """

    stop: StopConfig | None
    patience: int = 5
    flat: int = 0
    clipped: int = 0
    rewards: list[float] = field(default_factory=list)
    """Trained reward at each iteration."""
    wins: list[float] = field(default_factory=list)
    """Held-out win rate at each validation."""
    at_best: float = float("-inf")
    """Trained reward when the held-out win rate was best."""
    hacked: int = 0
    """Validations in a row at which the reward was above that, and the win rate below its best."""

    def iteration(self, step: int, figures: Mapping[str, float]) -> None:
        """Look at the figures of an iteration."""
        kinds = ("reward/", "judge/")  # the judge of candidates, where there is no reward
        found = [v for kind in kinds for k, v in figures.items() if k.startswith(kind)]
        if found:
            self.rewards.append(found[0])
        self.flat = self._count(
            step, self.flat, figures.get("zero_spread", 0.0) > 0.5,
            "the rewards of most prompts have no spread: make groups.images larger, the rollout noisier, or "
            "take a finer reward",
        )  # fmt: skip
        self.clipped = self._count(
            step, self.clipped, figures.get("clipped", 0.0) > 0.5,
            "most ratios are clipped: lower optim.learning_rate or update.updates, or set "
            "update.recompute_old=true",
        )  # fmt: skip

    def validation(self, step: int, win_rate: float) -> bool:
        """Take in a held-out win rate; says whether the run is to end."""
        self.wins.append(win_rate)
        now = self.rewards[-1] if self.rewards else 0.0
        best = max(self.wins)
        if win_rate == best:
            self.at_best, self.hacked = now, 0
            return False
        drop = self.stop.drop if self.stop else StopConfig().drop
        self.hacked = self.hacked + 1 if now > self.at_best and best - win_rate > drop else 0
        if self.hacked < (self.stop.patience if self.stop else StopConfig().patience):
            return False
        log.warning(
            "step %d: the trained reward rises (%.3f to %.3f), and the held-out win rate has fallen from "
            "%.3f to %.3f: the policy pleases the reward alone; keep=best exports the best step",
            step, self.at_best, now, best, win_rate,
        )  # fmt: skip
        return self.stop is not None

    def state_dict(self) -> dict[str, Any]:
        """Counts so far, as JSON knows them."""
        names = ("flat", "clipped", "rewards", "wins", "hacked")
        state = {name: getattr(self, name) for name in names}
        return state | {"at_best": self.at_best if self.wins else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the counts of a checkpoint."""
        for name in ("flat", "clipped", "hacked"):
            setattr(self, name, state[name])
        self.rewards, self.wins = list(state["rewards"]), list(state["wins"])
        self.at_best = float("-inf") if state["at_best"] is None else state["at_best"]

    def _count(self, step: int, so_far: int, holds: bool, text: str) -> int:
        count = so_far + 1 if holds else 0
        if count == self.patience:
            log.warning("step %d: %s", step, text)
        return count
