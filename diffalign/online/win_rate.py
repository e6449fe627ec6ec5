"""Win rates among the pictures of a prompt, by scores or by a judge that compares two pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scorers.protocol import Scorer

if TYPE_CHECKING:
    from diffalign.online.rewards import Made

Wins = Callable[[Tensor, str], Tensor]
"""(n, 3, H, W) pictures and their prompt to (n, n) chances that picture i beats picture j; NaN is unknown."""


class WinRate:
    """Mean win rate of each picture against the others of its prompt (Pref-GRPO, arXiv:2508.20751).

    A batch must hold whole groups.
    """

    def __init__(self, scorer: Scorer, device: torch.device, *, by_pairs: bool = False) -> None:
        """Keep the scorer.

        Args:
            scorer: of single pictures or of pairs.
            device: where pictures are scored.
            by_pairs: ask a scorer of single pictures to compare two as well.

        Raises:
            ValueError: it compares no two pictures of one prompt.
        """
        self.wins = wins_of(scorer, device, by_pairs=by_pairs)

    @torch.no_grad()
    def __call__(self, made: Made) -> Tensor:
        """(B,) rates in [0, 1], a tie is half a win; NaN where no comparison of a picture was answered."""
        out, pictures = torch.empty(len(made.prompts)), made.decoded()
        group = torch.tensor(made.group)
        for number in group.unique():
            own = (group == number).nonzero().flatten()
            wins = self.wins(pictures[own.to(pictures.device)], made.prompts[int(own[0])]).cpu()
            out[own] = wins.float().fill_diagonal_(torch.nan).nanmean(1)
        return out


def wins_of(scorer: Scorer, device: torch.device, *, by_pairs: bool = False) -> Wins:
    """How a scorer compares the pictures of a prompt: all at once, two by two, or by the sign of score gaps.

    See WinRate for the arguments.

    Raises:
        ValueError: a scorer of sets, or one whose comparison is with a reference picture.
    """
    asked: Any = scorer
    if scorer.kind == "pointwise" and not by_pairs:
        return lambda pictures, prompt: _by_scores(scorer, pictures.to(device), prompt)
    if hasattr(scorer, "matrix"):
        return lambda pictures, prompt: torch.sigmoid(asked.matrix(list(pictures), prompt))
    known = scorer.kind in ("pointwise", "pairwise") and hasattr(scorer, "compare")
    if not known or "reference" in scorer.needs:
        raise ValueError(
            f"reward {scorer.name} is {scorer.kind} and compares no group: take a scorer of single pictures, "
            "or a pairwise one that has compare(a, b, prompts) or matrix(images, prompt), as gpm"
        )
    return lambda pictures, prompt: _by_pairs(asked, pictures, prompt)


def _by_scores(scorer: Scorer, pictures: Tensor, prompt: str) -> Tensor:
    """(n, n) 1, 1/2 or 0 by the sign of score gaps; NaN stays NaN."""
    score = scorer.score_tensor(pictures, [prompt] * len(pictures))
    score = score if scorer.higher_better else -score
    return (torch.sign(score[:, None] - score[None, :]) + 1) / 2


def _by_pairs(judge: Any, pictures: Tensor, prompt: str) -> Tensor:
    """(n, n) chances by a judge that is asked once about each of the n (n - 1) / 2 pairs, all in one call.

    A pair whose answer could not be read is unknown, and not half a win.
    """
    n = len(pictures)
    i, j = torch.triu_indices(n, n, 1)
    place = i.to(pictures.device), j.to(pictures.device)
    found = judge.compare(list(pictures[place[0]]), list(pictures[place[1]]), prompt)
    if found.prob.shape != i.shape:
        raise ValueError(f"{len(found.prob)} answers for {len(i)} pairs; one number each is needed")
    prob = found.prob.float().cpu()
    if found.status is not None:
        prob = prob.where(torch.tensor([word == "ok" for word in found.status]), torch.nan)
    wins = torch.full((n, n), torch.nan)
    wins[i, j], wins[j, i] = prob, 1 - prob
    return wins
