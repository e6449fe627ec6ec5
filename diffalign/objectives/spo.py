"""SPO: LPO's predecessor, with scores of decoded pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from diffalign.objectives.lpo import LPO
from diffalign.objectives.steps import online_objectives


@online_objectives.register("spo")
@dataclass(frozen=True, kw_only=True)
class SPO(LPO):
    """Step-level DPO at a small beta (Step-aware Preference Optimization, arXiv:2406.04314).

    The loss is that of ``lpo``; what differs is who scores the candidates: a step-aware judge of the decoded
    x0_hat, at two-way softmax differences above 0.3 (SD1.5) or 0.4 (SDXL), from t = 750 down.
    """

    paper: ClassVar[str] = "https://arxiv.org/abs/2406.04314"

    beta: float = 10.0
    """Strength of the pull to the reference; log-probabilities are means over elements."""
