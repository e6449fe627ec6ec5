"""D3PO: the preference of two whole trajectories, at each of their steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffalign.objectives.lpo import LPO
from diffalign.objectives.steps import online_objectives


@online_objectives.register("d3po")
@dataclass(frozen=True, kw_only=True)
class D3PO(LPO):
    """DPO on each step of two trajectories from one x_T (D3PO, arXiv:2311.13231).

    The loss is that of ``lpo``; winner and loser are the k-th steps of two images, each from its own latent,
    so each side has passes of its own.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2311.13231"

    beta: float = 0.1
    """Strength of the pull to the reference; log-probabilities are means over elements."""
