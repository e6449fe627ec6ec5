"""The ``details`` of a report.json: what ``diffalign evaluate BASE ALIGNED ...`` finds beside win rates."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from diffalign.evaluate.stats import Interval


class Range(TypedDict):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Controlled(Range):
    """Win rate at equal covariates."""

    covariates: list[str]


class Metric(TypedDict):
    """What belongs to a row of ``comparisons`` beside its columns."""

    model: str
    metric: str
    decided: float
    """Wins among decided pairs."""
    clustered: Range
    """Win rate with the interval of its standard error, clustered by prompt."""
    agrees: bool
    """Whether both intervals have about one width; if not, take the wider."""
    mean_gain_sd: Range
    regression_rate: Range
    p_holm: float | None
    """Adjusted for several models (primary metric) or all other comparisons; none if trained on."""
    controlled: NotRequired[Controlled]


class Standing(TypedDict):
    """A model's place among three or more, by the primary metric or by votes."""

    model: str
    gain: Range
    """Bradley-Terry log-strength minus the base's."""
    rank: int
    rank_low: int
    rank_high: int


class Reliability(TypedDict):
    """How many seeds of a model fail."""

    fail: Range
    """Share of pictures."""
    every_seed: float
    """Share of prompts of which all seeds fail."""
    some_seeds: float
    """Share of prompts of which some seeds fail and others do not."""


class Seeds(TypedDict):
    """Reliability of seeds, and those that stand out over all prompts (where they share their noise)."""

    metric: str
    noise: str
    models: dict[str, Reliability]
    fail: list[int]
    excel: list[int]


class Calibration(TypedDict):
    """A scorer against people's votes."""

    metric: str
    votes: int
    accuracy: Range
    """Share of decided votes that the scorer decides alike."""
    bias: dict[str, Range]
    """By model: win rate against the base by the scorer minus that by people, over the same pictures."""


class Details(TypedDict, total=False):
    """Sections of a report; a section that was not asked for is not there."""

    settings: dict[str, Any]
    metrics: list[Metric]
    """One for each row of ``comparisons``, in its order."""
    categories: dict[str, dict[str, Range]]
    """Win rate by the primary metric, by model and category of prompts."""
    statistics: dict[str, dict[str, Range]]
    """Image statistics: change from the base, in its s.d. over pictures, by model."""
    worst_category: dict[str, dict[str, Any]]
    """By model, where diversity has fallen most: category and share of the base's that is left."""
    league: list[Standing]
    seeds: Seeds
    facets: dict[str, dict[str, dict[str, dict[str, Range]]]]
    """Share of right pictures by scorer, model, facet (objects, colour, relation, tag) and its value."""
    brittleness: dict[str, dict[str, Range]]
    """By model and change of the initial noise: change of the primary score, in s.d."""
    smoothness: dict[str, Range]
    """By model: ISTD along interpolations of the initial noise."""
    votes: dict[str, Any]
    """Win rates by people, and their standings."""
    calibration: list[Calibration]
    notes: list[str]


def as_range(interval: Interval) -> Range:
    """An interval in the form of the report."""
    return Range(value=interval.value, low=interval.low, high=interval.high)
