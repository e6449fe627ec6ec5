"""Rules that make pairs of the scored images of one prompt; each is one small function, found by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from diffalign.data.records import DataError
from diffalign.data.split import fraction
from diffalign.label.formulas import pareto_fronts
from diffalign.registry import Registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """Options of the rules that make pairs; scores are in s.d. between the images of a prompt."""

    share: float = 0.5
    """divpo: share of a prompt's images that counts as good, and as bad."""
    deviations: float = 2.0
    """mean_minus_2sd: how many s.d. of the prompt's scores the loser is below their mean."""
    losers: Literal["nearest", "below"] = "nearest"
    """mean_minus_2sd: the one image nearest to that score, or all below it."""
    temperature: float = 0.5
    """rejection: an image is accepted with probability exp((score - best) / temperature)."""
    negatives: int = 3
    """feature_spread: losers of each prompt."""
    min_gap: float = 0.0
    """rank_then_sift: score gap that each scorer must see at least."""
    seed: int = 0
    """rejection: seed of what is accepted."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 < self.share <= 0.5:
            raise DataError(f"rule.share is {self.share}; it must be in (0, 0.5], so that no image is both")
        if self.temperature <= 0:
            raise DataError(f"rule.temperature is {self.temperature}; it must be positive")
        if self.negatives < 1:
            raise DataError(f"rule.negatives is {self.negatives}; it must be at least 1")
        if self.min_gap < 0:
            raise DataError(f"rule.min_gap is {self.min_gap}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The scored images of one prompt."""

    prompt: str
    z: Array
    """(K, n) scores of K scorers, minus their means over these images, in s.d. between images of a prompt."""
    features: Array | None = None
    """(n, D) unit features; only for rules that need them."""

    def __post_init__(self) -> None:
        """Refuse a single image."""
        if self.z.shape[1] < 2:
            raise DataError(
                f"prompt {self.prompt!r}: a ranking of one item; a rule compares two images or more"
            )

    @property
    def quality(self) -> Array:
        """(n,) mean over the scorers."""
        mean: Array = self.z.mean(0)
        return mean

    @property
    def distances(self) -> Array:
        """(n, n) distances in feature space."""
        if self.features is None:
            raise DataError(f"prompt {self.prompt!r}: this rule compares features, and there are none")
        f = self.features
        squared = ((f[:, None] - f[None]) ** 2).sum(-1)
        out: Array = np.sqrt(squared)
        return out


Pairs = list[tuple[int, int]]
"""(winner, loser) positions."""
Rule = Callable[[Candidates, RuleOptions], Pairs]
rules: Registry[Rule] = Registry("pair rule")
"""Rules by name."""


@rules.register("best_worst")
def best_worst(images: Candidates, options: RuleOptions) -> Pairs:
    """The best image against the worst."""
    q = images.quality
    return _decided(images, [(int(q.argmax()), int(q.argmin()))])


@rules.register("mean_minus_2sd")
def mean_minus_2sd(images: Candidates, options: RuleOptions) -> Pairs:
    """The best image against one at mean - 2 s.d. of the prompt\'s scores: the worst of many are too easy.

    Xiao et al. 2025 (arXiv:2502.16825) take the image nearest to that score. ``losers=below`` takes all below
    it, of which there can be none among fewer than six images.
    """
    q = images.quality
    level = q.mean() - options.deviations * q.std()
    losers = [int(np.abs(q - level).argmin())] if options.losers == "nearest" else np.flatnonzero(q < level)
    return _decided(images, [(int(q.argmax()), int(i)) for i in losers])


@rules.register("divpo")
def divpo(images: Candidates, options: RuleOptions) -> Pairs:
    """The rarest of the good images against the most common of the bad (arXiv:2501.18101).

    Rare is what is far from the other images of the prompt, on average.
    """
    q, rarity = images.quality, images.distances.mean(1)
    count = max(1, int(options.share * len(q)))
    order = np.argsort(q, kind="stable")
    good, bad = order[-count:], order[:count]
    return _decided(images, [(int(good[rarity[good].argmax()]), int(bad[rarity[bad].argmin()]))])


@rules.register("rejection")
def rejection(images: Candidates, options: RuleOptions) -> Pairs:
    """Accept good images more often, compare the accepted two by two (RSO, arXiv:2309.06657).

    The best is always accepted. What is accepted depends on seed and prompt alone.
    """
    q = images.quality
    rng = np.random.default_rng(int(fraction(images.prompt, options.seed) * 2**53))
    taken = np.flatnonzero(rng.random(len(q)) < np.exp((q - q.max()) / options.temperature))
    mixed = rng.permutation(taken)
    both = [(int(a), int(b)) for a, b in zip(mixed[::2], mixed[1::2], strict=False)]
    return _decided(images, [(a, b) if q[a] >= q[b] else (b, a) for a, b in both])


@rules.register("feature_spread")
def feature_spread(images: Candidates, options: RuleOptions) -> Pairs:
    """The best image against losers spread out in feature space (the core-set of AMPO, arXiv:2502.18293).

    Each further loser is the image farthest from the best and the losers so far.
    """
    d, best = images.distances, int(images.quality.argmax())
    chosen = [best]
    while len(chosen) <= min(options.negatives, len(d) - 1):
        nearest = d[:, chosen].min(1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return _decided(images, [(best, i) for i in chosen[1:]])


@rules.register("rank_then_sift")
def rank_then_sift(images: Candidates, options: RuleOptions) -> Pairs:
    """Pair the k-th best by mean score with the k-th worst, and keep what every scorer confirms."""
    order = np.argsort(-images.quality, kind="stable")
    n = len(order)
    both = [(int(order[k]), int(order[n - 1 - k])) for k in range(n // 2)]
    gaps = [images.z[:, w] - images.z[:, b] for w, b in both]
    return [
        pair for pair, gap in zip(both, gaps, strict=True) if gap.min() > 0 and gap.min() >= options.min_gap
    ]


@rules.register("pareto")
def pareto(images: Candidates, options: RuleOptions) -> Pairs:
    """Images that none beats by every scorer against those of the last front (CaPO, arXiv:2502.02588)."""
    fronts = pareto_fronts(images.z)
    if fronts.max() == 1:
        return []
    first, last = np.flatnonzero(fronts == 1).tolist(), np.flatnonzero(fronts == fronts.max()).tolist()
    return [(a, b) for a in first for b in last if bool((images.z[:, a] >= images.z[:, b]).all())]


@rules.register("relabel")
def relabel(images: Candidates, options: RuleOptions) -> Pairs:
    """An existing pair with the label that the scorers give it (AI feedback); equal scores make no pair."""
    if len(images.quality) != 2:
        raise DataError(
            f"prompt {images.prompt!r}: relabel is for pairs, and these are {len(images.quality)} images; "
            "take best_worst"
        )
    return best_worst(images, options)


def _decided(images: Candidates, pairs: Pairs) -> Pairs:
    """Pairs whose winner is truly better: no image against itself or an equal one."""
    q = images.quality
    return [(a, b) for a, b in pairs if q[a] > q[b]]
