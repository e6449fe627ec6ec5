"""How much of the old weights survives an epoch, where the behaviour policy follows the trained one."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Blend:
    """old <- d old + (1 - d) new after epoch n, with d = min(first + rate max(n - start, 0), most)."""

    first: float = 0.0
    """d of the first epochs; 0 copies the new weights."""
    rate: float = 0.0
    """By how much d grows at each epoch."""
    start: int = 0
    """Epoch from which on it grows."""
    most: float = 0.999
    """Where it stops."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (0 <= self.first <= self.most < 1 and 0 <= self.rate < math.inf and self.start >= 0):
            raise ValueError(f"{self}: 0 <= first <= most < 1, rate >= 0 and start >= 0 are needed")

    def decay(self, epoch: int) -> float:
        """d after epoch n, counted from 0."""
        return min(self.first + self.rate * max(epoch - self.start, 0), self.most)


BLENDS = {
    "copy": Blend(),
    "nft": Blend(rate=0.001, most=0.5),
    "nft_late": Blend(rate=0.0075, start=75),
    "crd_fast": Blend(rate=0.02, most=0.99),
    "crd_half": Blend(rate=0.01, most=0.5),
    "crd_sampling": Blend(rate=0.0075),
    "crd_old": Blend(first=0.25, rate=0.005),
    "dgpo": Blend(rate=0.001, most=0.3),
}
"""Published ones: types 0, 1 and 2 of DiffusionNFT, 4, 5 and 6 and the anchor of CRD, and DGPO's."""
