"""Guidance and mixtures as formulas: by hand, linear in people's weights, and what is refused."""

from __future__ import annotations

import pytest
import torch

from diffalign.attention.decoupled import add_user_attention
from diffalign.personalize.guidance import Condition, conditional, each, guide, interpolate, mixture


def people(count: int = 3) -> list[torch.Tensor]:
    return list(torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(0)))


def attended(condition: Condition) -> torch.Tensor:
    """What attention gives for this condition; tokens serve as keys and values."""
    q = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(1))
    k = condition.tokens.unflatten(-1, (2, 3))
    return add_user_attention(torch.zeros_like(q), q, k, k.flip(-1), condition.scale)


def test_guidance_by_hand() -> None:
    empty, text, user = torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([5.0])
    assert guide(empty, text, user, text_weight=4.0, user_weight=2.0).tolist() == [1 + 4 + 6]
    stands = conditional(text, user, text_weight=4.0, user_weight=2.0)
    assert (empty + 4 * (stands - empty)).tolist() == [11.0]


def test_mixtures_of_outputs_are_linear() -> None:
    one, two, three = people()
    alone = [attended(each([p])) for p in (one, two, three)]
    found = attended(mixture([(one, 1.0), (two, -1.0), (three, 1.0)]))
    torch.testing.assert_close(found, alone[0] - alone[1] + alone[2])
    torch.testing.assert_close(attended(interpolate(one, two, 0.25)), 0.75 * alone[0] + 0.25 * alone[1])
    torch.testing.assert_close(attended(mixture([(one, 1.0)]).scaled(2.0)), 2 * alone[0])


def test_mixtures_of_tokens_are_not_but_end_at_the_people() -> None:
    one, two, _ = people()
    assert torch.equal(interpolate(one, two, 0.0, "token").tokens[0], one)
    assert torch.equal(interpolate(one, two, 1.0, "token").tokens[0], two)
    half = attended(interpolate(one, two, 0.5, "token"))
    assert (half - attended(interpolate(one, two, 0.5))).abs().max() > 1e-2
    found = mixture([(one, 1.0), (two, -1.0), (one, 1.0)], "token").tokens[0]
    torch.testing.assert_close(found, 2 * one - two)


def test_what_cannot_be_mixed_is_refused() -> None:
    one, two, _ = people()
    with pytest.raises(ValueError, match=r"sum to 2, .* mix at level="):
        mixture([(one, 1.0), (two, 1.0)], "token")
    with pytest.raises(ValueError, match="people with tokens of one shape"):
        mixture([(one, 1.0), (two[:2], 1.0)])
    with pytest.raises(ValueError, match="nobody"):
        mixture([])
    with pytest.raises(ValueError, match="must be finite"):
        mixture([(one, float("nan"))])
    with pytest.raises(ValueError, match="level of output or token, not 'both'"):
        mixture([(one, 1.0)], "both")
    with pytest.raises(ValueError, match="side by side"):
        each([one, two[:2]])
