"""What a training step does about people: whom it leaves out, whom it swaps, and losses of the tokens alone.

Everything is by the seed of a comparison unit, so that both sides of a pair agree, and a run that is resumed
or shared out over processes does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.diffusion.corrupt import draw_seed, seeded_uniform


def keep_users(units: Sequence[int], dropout: float) -> Tensor:
    """(N,) bool, False where a row gets nobody's tokens in place of its person's (0.1 is usual).

    With a LoRA in training dropped rows train what all people share. Where the users' branch alone trains,
    they train the tokens of nobody.

    Args:
        units: seed of each row's comparison unit.
        dropout: probability, in [0, 1].

    Raises:
        ValueError: a probability outside [0, 1].
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"user dropout is {dropout}; it must be in [0, 1] (0.1 is usual)")
    return seeded_uniform([draw_seed("user dropout", unit) for unit in units]) >= dropout


def other_rows(people: Sequence[str], units: Sequence[int]) -> tuple[Tensor, Tensor]:
    """For each row the place of a row of another person, for the swap control, and whether there is one.

    Args:
        people: the person of each of N rows.
        units: seed of each row's comparison unit; rows of one unit get the same other person.

    Returns:
        (N,) int64 places (a row's own where all rows are of one person) and (N,) bool.
    """
    first = {person: i for i, person in reversed(list(enumerate(people)))}
    order = list(first)
    places, found = [], []
    for row, (person, unit) in enumerate(zip(people, units, strict=True)):
        others = [p for p in order if p != person]
        drawn = others[draw_seed("other user", unit) % len(others)] if others else person
        places.append(first[drawn] if others else row)
        found.append(bool(others))
    return torch.tensor(places, dtype=torch.int64), torch.tensor(found, dtype=torch.bool)


def info_nce(first: Tensor, second: Tensor, people: Sequence[str], temperature: float = 0.1) -> Tensor:
    """Scalar loss that tells people apart: two descriptions of one person are nearer than those of two.

    -log of the share of exp(cos / temperature) that falls on the same person (InfoNCE, arXiv:1807.03748).

    Args:
        first: (B, K, D) tokens of B people from one set of votes each.
        second: (B, K, D) from another set of the same people's votes.
        people: who they are; one who comes twice is no negative of themselves.
        temperature: above 0.
    """
    a, b = (F.normalize(x.flatten(1).float(), dim=1) for x in (first, second))
    z = a @ b.T / temperature  # (B, B)
    same = torch.tensor([[p == q for q in people] for p in people], device=z.device)
    return -(z.masked_fill(~same, -torch.inf).logsumexp(1) - z.logsumexp(1)).mean()


def dispersion(tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Scalar log mean exp(-|d_i - d_j|^2 / temperature) over different rows: low where people differ.

    (Premier's guard against people who are all alike; 0.1 and a temperature of 1 are published.)

    Args:
        tokens: (B, K, D) tokens of B >= 2 different people.
        temperature: above 0, in units of the squared distance averaged over K D entries.
    """
    x = tokens.flatten(1).float()
    apart = (x[:, None] - x[None, :]).square().mean(-1)  # (B, B)
    rest = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    pairs = (-apart[rest] / temperature).logsumexp(0)
    return pairs - torch.log(rest.sum().to(pairs))
