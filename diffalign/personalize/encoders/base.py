"""What every user encoder is: frozen options, which are its block in a recipe, and the network they make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from diffalign.personalize.encoders.about import About
from diffalign.registry import Registry

MAX_TOKENS = 32
STD = 0.02
"""Standard deviation of tokens that are learned as they are."""
NAME = "name"

V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class EncoderOptions(ABC):
    """Options of a user encoder."""

    paper: ClassVar[str]
    """Where the encoder is from."""
    needs: ClassVar[frozenset[str]]
    """Fields of About that must be filled."""

    tokens: int = 8
    """K, how many tokens stand for a person, 2 to 32."""
    width: int = 768
    """D, width of a token; that of the model's text saves a random start of the keys."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: an option out of range; a single token is refused with the reason.
        """
        if self.tokens == 1:
            raise ValueError(
                "tokens is 1: the softmax over a single key is 1 whatever the key, so the user's keys never "
                f"learn and attention is one constant per layer; take 2 to {MAX_TOKENS} (8 is usual)"
            )
        self.require(2 <= self.tokens <= MAX_TOKENS, "tokens", f"from 2 to {MAX_TOKENS} (8 is usual)")
        self.require(self.width >= 1, "width", "at least 1 (768 is usual)")

    @abstractmethod
    def make(self, people: int = 0) -> UserEncoder:
        """A new encoder; ``people`` is how many have a row of their own in it, where it keeps a table."""

    def require(self, holds: bool, option: str, must: str) -> None:
        """Raise ValueError on a wrong option; ``must`` ends "it must be ..."."""
        if not holds:
            value = getattr(self, option)
            raise ValueError(f"{name_of(type(self))}.{option} is {value}; it must be {must}")


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What an encoder made of B people."""

    tokens: Tensor
    """(B, K, D)."""
    known: Tensor | None = None
    """(B,) bool, False where nothing is known of the person; None where all are known."""
    kl: Tensor | None = None
    """(B,) divergence of a variational encoder's posterior from its prior, in nats; None for others."""


class UserEncoder(nn.Module, ABC):
    """Turns what is known of people into (B, K, D) tokens; ``nobody`` stands for those of whom nothing is.

    ``nobody`` is learned by user dropout: rows that are not kept get it in place of their own tokens.
    """

    personal: tuple[str, ...] = ()
    """Parameters with a row for each person: personal data, which the store of people keeps apart from the
    weights."""

    def __init__(self, options: EncoderOptions) -> None:
        """Take the options."""
        super().__init__()
        self.options = options
        self.nobody = nn.Parameter(STD * torch.randn(options.tokens, options.width))

    @abstractmethod
    def encode(self, about: About) -> Encoded:
        """Tokens of people as they are, whether known or not."""

    def encoded(self, about: About, keep: Tensor | None = None) -> Encoded:
        """Tokens of B people, those of nobody for the unknown and for rows that (B,) bool ``keep`` drops.

        Raises:
            ValueError: ``about`` lacks what this encoder needs, or has it in other widths.
        """
        for name in sorted(self.options.needs):
            if getattr(about, name) is None:
                who = name_of(type(self.options))
                raise ValueError(f"the user encoder {who} needs {name} of every person: fill About.{name}")
        found = self.encode(about)
        kept = _both(found.known, keep)
        if kept is None:
            return found
        tokens = torch.where(kept[:, None, None], found.tokens, self.nobody)
        kl = None if found.kl is None else torch.where(kept, found.kl, 0.0)
        return Encoded(tokens=tokens, known=kept, kl=kl)

    def forward(self, about: About, keep: Tensor | None = None) -> Tensor:
        """(B, K, D) tokens; see ``encoded``."""
        return self.encoded(about, keep).tokens

    def weights(self) -> dict[str, Tensor]:
        """Tensors by name without any person's rows."""
        return {k: v for k, v in self.state_dict().items() if k not in self.personal}


encoders: Registry[type[EncoderOptions]] = Registry(
    "user encoder", package="diffalign.personalize.encoders", entry_points="user_encoders"
)
"""Options of all user encoders by name; found by scanning this folder."""


def names() -> list[str]:
    """Names of all registered user encoders."""
    return encoders.names()


def name_of(cls: type[EncoderOptions]) -> str:
    """Registered name of an encoder's options, or ``module:Class`` where they have none."""
    found = [n for n in names() if encoders.get(n) is cls]
    return found[0] if found else f"{cls.__module__}:{cls.__qualname__}"


def make_options(name: str, options: Mapping[str, Any] | None = None) -> EncoderOptions:
    """Options of the encoder called ``name`` (or ``package.module:Class``).

    Raises:
        RegistryError: no encoder has this name; the message suggests the nearest.
        TypeError: an option that this encoder does not have; the message lists those it has.
        ValueError: an option out of range.
    """
    cls = encoders.get(name)
    if not is_dataclass(cls):
        raise TypeError(f"user encoder {name!r} must have a dataclass of options")
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(options or {}) - set(known))
    if unknown:
        raise TypeError(f"user encoder {name!r} has no option {unknown[0]!r}; it takes {', '.join(known)}")
    return cls(**(options or {}))


def options_to_json(options: EncoderOptions) -> dict[str, Any]:
    """Name and options as JSON."""
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    nested = {k: options_to_json(v) if isinstance(v, EncoderOptions) else v for k, v in values.items()}
    return {NAME: name_of(type(options)), **nested}


def options_from_json(found: Mapping[str, Any]) -> EncoderOptions:
    """Undo ``options_to_json``.

    Raises:
        ValueError: no name, or see ``make_options``.
    """
    if NAME not in found:
        raise ValueError(f"a user encoder has no name among {', '.join(found) or 'nothing'}")
    values = {k: _from_json(v) for k, v in found.items() if k != NAME}
    return make_options(str(found[NAME]), values)


def _from_json(value: Any) -> Any:
    if isinstance(value, Mapping) and NAME in value:
        return options_from_json(value)
    return tuple(value) if isinstance(value, list) else value


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first & second.to(first.device)


def check_width(found: Tensor, width: int, what: str, who: str) -> None:
    """Raise ValueError where the last dimension of features is not what the encoder was made for."""
    if found.shape[-1] != width:
        raise ValueError(
            f"{what} have {found.shape[-1]} features and the user encoder {who} takes {width}: use the "
            "tower that it was trained with"
        )


def small(*shape: int) -> nn.Parameter:
    """Parameter that starts near zero."""
    return nn.Parameter(STD * torch.randn(*shape))
