"""Options of labelling and pair making."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from diffalign.data.records import DataError
from diffalign.label.rules import RuleOptions


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """How data are scored and what is made of the scores."""

    format: str = "auto"
    """Format of the data, or auto; images for folders of images that have a metadata.jsonl without labels."""
    max_pairs: int | None = None
    """Read at most so many records of each path."""
    siblings: Literal["record", "prompt"] = "record"
    """What an image is compared with for phi, calibrated and front: the others of its record or prompt."""
    calibration: Literal["sd", "raw"] = "sd"
    """Unit of the calibrated reward\'s odds: a scorer\'s s.d. between images of a prompt, or its own unit."""
    low: float | None = None
    """SmPO\'s smallest score of the first scorer; null takes that of these data."""
    high: float | None = None
    """SmPO\'s largest score of the first scorer; null takes that of these data."""
    features: str = "pixels"
    """What says how different images look: pixels, or a scorer with an image tower (name or name=weights)."""
    rule: RuleOptions = field(default_factory=RuleOptions)
    """Options of the rule that makes pairs."""
    batch: int = 32
    """Pictures that go through a scorer at once."""
    max_bad_share: float = 0.01
    """Share of unreadable images above which the pass stops; records with one are left out."""
    cache: str = "outputs/cache"
    """Folder that keeps scores and features."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.batch < 1:
            raise DataError(f"batch is {self.batch}; it must be at least 1")
        if not 0 <= self.max_bad_share <= 1:
            raise DataError(f"max_bad_share is {self.max_bad_share}; it must be in [0, 1]")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise DataError(f"low is {self.low} and high is {self.high}; low must be less")
