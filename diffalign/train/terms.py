"""The terms of a run's loss, and whether the parts of a recipe fit together."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from torch import Tensor

from diffalign.config import Names
from diffalign.diffusion.corrupt import Corruptor, corruptors
from diffalign.diffusion.process import WeightName
from diffalign.diffusion.spaces import Native, Space, spaces
from diffalign.diffusion.weights import ErrorWeight
from diffalign.objectives import Objective, objectives
from diffalign.objectives.base import name_of
from diffalign.objectives.beta import BetaConvention, canonical_beta
from diffalign.personalize.encoders import encoders
from diffalign.personalize.encoders.base import name_of as encoder_name

FILLED = frozenset(
    {
        "soft",
        "score",
        "margin",
        "weight",
        "tensors",
        "kl_error",
        "kl_ref_error",
        "prompt_features",
        "rollout_distance",
        "anchor_error",
        "anchor_ref_error",
    }
)
"""What the trainer can give an objective that declares it in ``needs``."""
OF_PEOPLE = frozenset({"other_error", "other_disagrees"})
"""What it can give besides where it trains with people."""
CONVERTING: frozenset[WeightName] = frozenset(
    {"eps_equivalent", "x0_equivalent", "snr", "min_snr", "sigmoid"}
)
"""Weights that turn native errors into others."""
UNIONS = {
    **dict.fromkeys(("objective", "objective.pair", "objective.pair.pair"), objectives.get),
    **dict.fromkeys(("terms.objective", "terms.objective.pair"), objectives.get),
    **dict.fromkeys(("space", "terms.space"), spaces.get),
    "corruptor": corruptors.get,
    **dict.fromkeys(("people.encoder", "people.encoder.encoder"), encoders.get),
}
"""Blocks of a recipe whose class hangs on their name."""
NAMES: Names = {key: name_of for key in UNIONS if "objective" in key} | {
    key: encoder_name for key in UNIONS if key.startswith("people.")
}
"""The way back, for blocks that do not hold their name themselves."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A further objective on the same noisy latents and predictions."""

    objective: Objective
    """What is asked of the errors."""
    space: Space = field(default_factory=Native)
    """What an error is."""
    weight: float = 1.0
    """Factor on the term's mean loss."""

    def __post_init__(self) -> None:
        """Check the range."""
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}; it must be above 0: leave the term out instead")


class Prefixed(MutableMapping[str, Tensor]):
    """The part of a mapping whose keys begin with a prefix, without it: running statistics of one term."""

    def __init__(self, whole: MutableMapping[str, Tensor], prefix: str) -> None:
        """Look at ``whole`` through ``prefix``."""
        self.whole, self.prefix = whole, prefix

    def __getitem__(self, key: str) -> Tensor:
        """Value of a key."""
        return self.whole[self.prefix + key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        """Set a key."""
        self.whole[self.prefix + key] = value

    def __delitem__(self, key: str) -> None:
        """Remove a key."""
        del self.whole[self.prefix + key]

    def __iter__(self) -> Iterator[str]:
        """Keys of this part."""
        return (k.removeprefix(self.prefix) for k in self.whole if k.startswith(self.prefix))

    def __len__(self) -> int:
        """Number of keys of this part."""
        return sum(1 for _ in self)


def check_terms(terms: tuple[Term, ...], reference: object, *, people: bool = False) -> None:
    """Check that the first term's data serve the others, and that all can be given what they need.

    Args:
        terms: of the loss.
        reference: of the recipe's policy.
        people: whether the run trains with people.

    Raises:
        ValueError: says which term, what it lacks, and what to change.
    """
    main = terms[0].objective
    for term in terms:
        name = name_of(type(term.objective))
        missing = sorted(set(term.objective.needs) - FILLED)
        if OF_PEOPLE & set(missing) and not people:
            raise ValueError(f"objective {name} compares people with one another: add a people block")
        missing = [what for what in missing if what not in OF_PEOPLE]
        if missing:
            raise ValueError(f"objective {name} needs {', '.join(missing)}, which training does not provide")
        if term.objective.data not in (main.data, "winners"):
            raise ValueError(
                f"terms: {name} trains on {term.objective.data}, but the objective on {main.data}: all terms "
                "see the same batch"
            )
        if term.objective.needs_reference and reference == "none":
            raise ValueError(
                f"the objective {name} compares with a reference: policy.reference must not be none"
            )


def check_space(space: Space, weight: ErrorWeight) -> None:
    """Refuse a weight that converts errors of another space.

    Raises:
        ValueError: says which weights fit.
    """
    weighed = weight if isinstance(weight, str) else weight.name
    if weighed in CONVERTING and space.unit != "native":
        name = getattr(space, "name", type(space).__name__)
        raise ValueError(
            f"error_weight is {weighed}, which converts native errors, and space {name} has others: take "
            "error_weight one or discount"
        )


def check_corruptor(corruptor: Corruptor, ema: float) -> None:
    """Refuse a corruptor that asks the average of the weights where none is kept.

    Raises:
        ValueError: as said.
    """
    if corruptor.asks == "ema" and not ema:
        name = getattr(corruptor, "name", type(corruptor).__name__)
        raise ValueError(f"corruptor {name} asks the averaged weights: set ema, for example 0.999")


def check_kept_errors(corruptor: Corruptor, terms: tuple[Term, ...], reference: object) -> None:
    """Refuse to keep reference errors that will not be the same in another run.

    Raises:
        ValueError: says what changes them.
    """
    kind = reference if isinstance(reference, str) else getattr(reference, "name", "")
    needs = frozenset[str]().union(*(t.objective.needs for t in terms))
    reasons = {
        f"policy.reference is {kind}, which is another at every step or none": kind
        in ("ema", "pool", "none"),
        "the corruptor asks a network for its latents": corruptor.asks is not None,
        "the objective needs more of the reference than errors": bool(needs & {"tensors", "kl_error"}),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"data.reference_errors cannot be kept: {reason}; leave it out")


def canonical(objective: Objective, elements: int) -> Objective:
    """The objective, and those within it, with beta in the canonical convention.

    Args:
        objective: any.
        elements: D, elements of a latent, which conventions on sums need.
    """
    changes: dict[str, Any] = {}
    inner = getattr(objective, "pair", None)
    if isinstance(inner, Objective):
        changes["pair"] = canonical(inner, elements)
    convention: BetaConvention = getattr(objective, "beta_convention", "canonical")
    if convention != "canonical":
        beta = canonical_beta(getattr(objective, "beta", 1.0), convention, elements)
        changes |= {"beta": beta, "beta_convention": "canonical"}
    if not changes or not is_dataclass(objective):
        return objective
    made: Any = replace(objective, **changes)
    return made  # type: ignore[no-any-return]


def innermost(objective: Objective) -> Objective:
    """The objective that wrappers hold."""
    inner = getattr(objective, "pair", None)
    return innermost(inner) if isinstance(inner, Objective) else objective
