"""Group scores: win rates, the lottery that nobody beats, circles."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scorers.groups import cyclic_share, mean_win, von_neumann_winner


def random_prob(n: int, seed: int) -> Tensor:
    upper = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)).triu(1)
    return upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(n)


def circle(a: float, b: float, c: float) -> Tensor:
    """0 beats 1 by a, 1 beats 2 by b, 2 beats 0 by c."""
    gain = torch.tensor([[0, a, -c], [-a, 0, b], [c, -b, 0]])
    return 0.5 + gain


def test_mean_win_by_hand() -> None:
    found = mean_win(torch.tensor([[0.5, 1.0, 0.6], [0.0, 0.5, 0.7], [0.4, 0.3, 0.5]]))
    torch.testing.assert_close(found, torch.tensor([0.8, 0.35, 0.35]))
    with pytest.raises(ValueError, match="square"):
        mean_win(torch.ones(2, 3))


def test_the_best_picture_wins_the_whole_lottery() -> None:
    strength = torch.tensor([0.0, 2.0, 1.0, -1.0])
    found = von_neumann_winner((strength[:, None] - strength[None, :]).sigmoid())
    torch.testing.assert_close(found, torch.tensor([0.0, 1, 0, 0]), rtol=0, atol=1e-3)


def test_a_circle_is_shared_as_the_closed_form_says() -> None:
    torch.testing.assert_close(von_neumann_winner(circle(0.3, 0.3, 0.3)), torch.full((3,), 1 / 3))
    a, b, c = 0.4, 0.1, 0.2
    wanted = torch.tensor([b, c, a]) / (a + b + c)
    torch.testing.assert_close(von_neumann_winner(circle(a, b, c)), wanted, rtol=0, atol=2e-3)


def test_equal_pictures_share_and_order_does_not_matter() -> None:
    torch.testing.assert_close(von_neumann_winner(torch.full((4, 4), 0.5)), torch.full((4,), 0.25))
    twins = torch.full((3, 3), 0.5)
    twins[:2, 2], twins[2, :2] = 0.9, 0.1
    torch.testing.assert_close(von_neumann_winner(twins), torch.tensor([0.5, 0.5, 0]), rtol=0, atol=1e-3)
    prob, order = random_prob(7, 0), torch.randperm(7)
    torch.testing.assert_close(von_neumann_winner(prob[order][:, order]), von_neumann_winner(prob)[order])


@pytest.mark.parametrize("seed", range(4))
def test_no_picture_beats_the_lottery(seed: int) -> None:
    prob = random_prob(16, seed)
    torch.testing.assert_close(prob + prob.T, torch.ones(16, 16))
    share = von_neumann_winner(prob)
    assert float(share.sum()) == pytest.approx(1, abs=1e-5)
    assert float((prob @ share).max()) < 0.5 + 2e-3
    uniform = torch.full((16,), 1 / 16)
    assert float((prob @ uniform).max()) > 0.52  # an arbitrary lottery is beaten


def test_probabilities_must_add_up() -> None:
    with pytest.raises(ValueError, match="must be 1"):
        von_neumann_winner(torch.tensor([[0.5, 0.9], [0.9, 0.5]]))


def test_share_of_circles() -> None:
    assert cyclic_share(circle(0.1, 0.2, 0.3)) == 1
    assert cyclic_share(circle(0.1, 0.2, -0.3)) == 0
    assert cyclic_share(torch.full((2, 2), 0.5)) == 0
