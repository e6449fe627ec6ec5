"""Pictures for a few people beside those of base and model, while a run trains and at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from diffalign.personalize.pipeline import Attached
from diffalign.personalize.wanted import Wanted, attach_wanted
from diffalign.policy import Policy
from diffalign.train.people import PeopleConfig

Make = Callable[[], Tensor]


@contextmanager
def made_for(policy: Policy, tokens: Tensor) -> Iterator[None]:
    """Inside, a policy that is trained with people makes pictures for somebody, by (K, D) tokens."""
    assert policy.users is not None  # trainers that show people have added them
    attached = Attached(policy.pipeline, policy.users, None, {})
    try:
        attached.use(tokens)
        yield
    finally:
        attached.let_go()


def in_training(policy: Policy, shown: Mapping[str, Tensor], make: Make) -> dict[str, Tensor]:
    """Pictures for each of some people, by name.

    Args:
        policy: in training.
        shown: (K, D) tokens by name.
        make: makes the pictures that are made for nobody else.
    """
    found = {}
    for name, tokens in shown.items():
        with made_for(policy, tokens):
            found[name] = make()
    return found


def from_export(policy: Policy, export: Path, people: PeopleConfig | None, make: Make) -> dict[str, Tensor]:
    """The same of a finished run's policy and the people in its export.

    Raises:
        FileNotFoundError: the export has no people.
        UsersError: somebody is no longer among them.
    """
    found = {}
    for name in people.show if people is not None else ():
        directed = people is not None and "direction" in people.encoder.needs
        attached = attach_wanted(policy.pipeline, export, _wanted(name, directed))
        try:
            found[name] = make()
        finally:
            attached.detach()
    return found


def _wanted(name: str, directed: bool) -> Wanted:
    return Wanted(direction=name) if directed else Wanted(user=name)
