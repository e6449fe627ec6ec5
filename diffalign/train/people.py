"""The block of a recipe that trains for single people."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffalign.personalize.adapter import BranchOptions
from diffalign.personalize.encoders import EncoderOptions
from diffalign.personalize.encoders.direction import DirectionOptions, parse_direction
from diffalign.personalize.robust import MaxMin
from diffalign.train.blocks import at_least, is_share

KNOWN = frozenset({"rows", "examples", "profile", "direction"})
"""What a run can tell an encoder of people."""
TAKEN = ("base", "aligned")
"""Columns of a run's gallery that are no people."""


@dataclass(frozen=True, kw_only=True)
class DirectionConfig:
    """How pairs are labelled for a direction over scorers that is drawn for each.

    A pair's gap is that of the direction's weighted scores, each in units of its root mean square over the
    data.
    """

    signed: bool = False
    """Whether weights of scorers may be negative."""
    single: float = 0.25
    """Share of directions that are a single scorer."""
    among: tuple[str, ...] = ()
    """Draw from these alone, such as dark=1,large=1; none draws from all that there are."""
    tie: float = 0.0
    """Gap up to which a pair is a tie, which data.ties treats."""
    temperature: float = 0.0
    """Labels are sigmoid(gap / temperature); 0 has hard ones."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: an option out of range.
        """
        is_share({"single": self.single})
        at_least(0, {"tie": self.tie, "temperature": self.temperature})


@dataclass(frozen=True, kw_only=True)
class RobustConfig:
    """Weights of people or groups of them, which move towards the worst served (MaxMin, arXiv:2402.08925)."""

    step: float = 0.01
    """Rate of the exponentiated gradient, per optimizer step."""
    floor: float = 0.1
    """Share of the weight that all get alike; 1 weighs them equally for ever."""
    groups: str | None = None
    """JSON file of {rater: group}; null takes each rater alone."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: an option out of range.
        """
        MaxMin(step=self.step, floor=self.floor)


@dataclass(frozen=True, kw_only=True)
class PeopleConfig:
    """Who judged is a condition of the policy, and never of the reference (PPD, arXiv:2501.06655)."""

    encoder: EncoderOptions
    """What turns what is known of a person into tokens: a block with its name and options."""
    branch: BranchOptions = field(default_factory=BranchOptions)
    """How the tokens enter the model; its ``features`` name the scorer whose towers read votes."""
    directions: DirectionConfig | None = None
    """How directions are drawn, where the encoder is one of directions; null draws evenly."""
    robust: RobustConfig | None = None
    """Serve the worst served better; null weighs all comparisons as the data do."""
    profiles: str | None = None
    """File of profiles that an encoder of profiles reads, by the names of raters."""
    dropout: float = 0.1
    """Share of comparison units without their person: they train what stands for nobody."""
    votes: int = 8
    """A person is described by 1 to so many votes, drawn for each unit."""
    encoder_rate: float = 1e-4
    """Peak learning rate of the encoder; it follows the schedule of ``optim``."""
    branch_rate: float = 1e-4
    """Peak learning rate of the layers' keys and values; it follows the schedule of ``optim``."""
    only: bool = False
    """Train encoder and layers alone, and leave the LoRA as it is (the second stage of PPD)."""
    foretell: int = 0
    """Steps in which an encoder of votes first learns to foretell votes, without the model; 0 none."""
    show: tuple[str, ...] = ()
    """Raters (of an encoder of directions: directions) whose pictures stand beside those for nobody in
    validation and in the gallery."""
    info_nce: float = 0.0
    """Weight of telling people apart by two drawings of their votes."""
    dispersion: float = 0.0
    """Weight of keeping different people's tokens apart (0.1 is published)."""
    kl: float = 0.0
    """Weight of a variational encoder's divergence from its prior (1e-4 is published)."""

    def __post_init__(self) -> None:
        """Check ranges and what an encoder can be told.

        Raises:
            ValueError: an option out of range, or one that this encoder cannot use.
        """
        is_share({"dropout": self.dropout})
        at_least(1, {"votes": self.votes})
        names = ("encoder_rate", "branch_rate", "info_nce", "dispersion", "kl")
        at_least(0, {name: getattr(self, name) for name in names} | {"foretell": self.foretell})
        self._check_encoder()
        self._check_directions()
        twice = next((name for name in self.show if self.show.count(name) > 1 or name in TAKEN), None)
        if twice is not None:
            raise ValueError(f"show: {twice!r} would name two columns; name each person once")

    @property
    def drawn(self) -> DirectionConfig:
        """How directions are drawn."""
        return self.directions or DirectionConfig()

    def _check_directions(self) -> None:
        if "direction" not in self.encoder.needs:
            if self.directions is not None:
                raise ValueError("directions are for an encoder of directions: take the encoder direction")
            return
        if not isinstance(self.encoder, DirectionOptions):
            raise ValueError("directions have no person to know besides: take the encoder direction alone")
        if self.info_nce or self.dispersion or self.kl:
            raise ValueError("info_nce, dispersion and kl tell people apart, and directions are no people")
        if self.robust is not None:
            raise ValueError("robust weighs people, and directions are no people: leave it out")
        for text in (*self.drawn.among, *self.show):
            parse_direction(text, self.encoder.scorers)

    def _check_encoder(self) -> None:
        needs = self.encoder.needs
        unknown = sorted(needs - KNOWN)
        if unknown:
            raise ValueError(
                f"the encoder needs {', '.join(unknown)}, which no data say: take another encoder"
            )
        if "examples" in needs and not self.branch.features:
            raise ValueError("the encoder reads votes: name the scorer of their features in branch.features")
        if ("profile" in needs) != (self.profiles is not None):
            raise ValueError("profiles name a file where the encoder reads profiles, and only there")
        if self.foretell and "examples" not in needs:
            raise ValueError("foretell trains an encoder of votes: take one, or set foretell to 0")
        if self.info_nce and "examples" not in needs:
            raise ValueError("info_nce compares two drawings of a person's votes: take an encoder of votes")
