"""The block of a recipe that trains for single people."""

from __future__ import annotations

from dataclasses import dataclass, field

from diffalign.personalize.adapter import BranchOptions
from diffalign.personalize.encoders import EncoderOptions
from diffalign.train.blocks import at_least, is_share

KNOWN = frozenset({"rows", "examples", "profile"})
"""What a run can tell an encoder of people."""


@dataclass(frozen=True, kw_only=True)
class PeopleConfig:
    """Who judged is a condition of the policy, and never of the reference (PPD, arXiv:2501.06655)."""

    encoder: EncoderOptions
    """What turns what is known of a person into tokens: a block with its name and options."""
    branch: BranchOptions = field(default_factory=BranchOptions)
    """How the tokens enter the model; its ``features`` name the scorer whose towers read votes."""
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
