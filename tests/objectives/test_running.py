"""Statistics over batches and processes: BCO's shift, DPO's automatic beta, KTO's shift."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.objectives import build
from diffalign.objectives.base import State
from diffalign.objectives.running import mean_over_all
from tests.objectives.small import Meeting, images_of, pairs_of


def test_bco_keeps_a_running_mean() -> None:
    objective, state = build("bco", beta=1.0, decay=0.75), {}
    first = objective.loss(pairs_of([(1.0, -2.0), (3.0, 0.0)]), state=state)[1]["shift"]
    assert first.tolist() == pytest.approx([0.5, 0.5])
    second = objective.loss(pairs_of([(4.0, 1.0)]), state=state)[1]["shift"]
    assert second.tolist() == pytest.approx([0.75 * 0.5 + 0.25 * 2.5])
    assert state["bco.shift"].item() == pytest.approx(second.item())
    assert not state["bco.shift"].requires_grad


def test_bco_shift_has_no_gradient() -> None:
    batch = pairs_of([(1.0, -2.0)])
    loss = build("bco", beta=1.0).loss(batch, state={})[0].sum()
    gradient = torch.autograd.grad(loss, batch.error)[0]
    slope = 0.5 / (1 + math.exp(1.5))  # of l(u_w + 1/2) by the winner's error
    assert gradient.tolist() == pytest.approx([slope, -slope])


def test_automatic_beta_reaches_its_target() -> None:
    """|lead| is 0.004 at beta 1, so beta = ln 4 / 0.004 makes sigma(-z) 0.2 on rightly ranked pairs."""
    batch = pairs_of([(0.004, 0.0), (0.001, 0.005)])
    loss, metrics = build("dpo", auto_beta=True, beta=300.0).loss(batch, state={})
    assert metrics["beta"].tolist() == pytest.approx([math.log(4) / 0.004] * 2)
    assert metrics["gradient_factor"].tolist() == pytest.approx([0.2, 0.8])
    assert loss.tolist() == pytest.approx([-math.log(0.8), -math.log(0.2)])


def test_automatic_beta_keeps_within_its_range() -> None:
    batch = pairs_of([(0.004, 0.0)])
    for beta, wanted in ((20.0, 200.0), (5000.0, 500.0)):
        assert build("dpo", auto_beta=True, beta=beta).loss(batch)[1]["beta"].item() == pytest.approx(wanted)


def test_automatic_beta_starts_at_the_first_gap() -> None:
    """A fresh adapter has gaps of exactly 0: they give beta itself and leave no trace in the mean."""
    objective, state = build("dpo", auto_beta=True, beta=300.0), {}
    assert objective.loss(pairs_of([(0.0, 0.0)]), state=state)[1]["beta"].item() == 300.0
    found = objective.loss(pairs_of([(0.004, 0.0)]), state=state)[1]["beta"].item()
    assert found == pytest.approx(math.log(4) / 0.004)
    found = objective.loss(pairs_of([(0.008, 0.0)]), state=state)[1]["beta"].item()
    assert found == pytest.approx(math.log(4) / (0.99 * 0.004 + 0.01 * 0.008))


def test_automatic_beta_is_declared_as_coupled() -> None:
    assert not build("dpo").coupled
    assert build("dpo", auto_beta=True).coupled


@pytest.mark.parametrize(
    ("option", "wrong"),
    [("auto_beta_target", 0.5), ("auto_beta_decay", 1.0), ("auto_beta_range", (2.0, 1.0))],
)
def test_automatic_beta_is_checked(option: str, wrong: object) -> None:
    with pytest.raises(ValueError, match=rf"dpo\.{option} is .*must be"):
        build("dpo", **{option: wrong})


@pytest.mark.parametrize(("name", "options"), [("bco", {}), ("dpo", {"auto_beta": True})])
def test_two_processes_equal_one_on_pairs(name: str, options: dict[str, object]) -> None:
    scores = [(0.9, -0.4), (0.1, 0.3), (-0.5, 0.2), (0.6, 0.7)]
    objective = build(name, beta=1.0, **options)
    whole = objective.loss(pairs_of(scores), state={})[0]
    parts = Meeting(2).together(objective, [pairs_of(scores[:1]), pairs_of(scores[1:])])
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("kl", ["batch", "balanced", "mismatched"])
def test_two_processes_equal_one_on_labels(kl: str) -> None:
    """Also where they have different shares of likes."""
    scores, role = [0.9, 0.4, 0.1, -0.3, 0.5, 0.2], [1, 1, -1, 1, -1, -1]
    objective = build("kto", beta=1.0, kl=kl)

    def part(rows: slice) -> object:
        batch = images_of(scores[rows], role[rows])
        other = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.8, 1.3], dtype=torch.float64)[rows]
        batch.extra = {"kl_error": other, "kl_ref_error": other.flip(0) * 2}
        return batch

    parts = [part(slice(0, 3)), part(slice(3, 6))]
    whole = part(slice(0, 6))
    whole.extra = {k: torch.cat([p.extra[k] for p in parts]) for k in whole.extra}
    torch.testing.assert_close(Meeting(2).together(objective, parts), objective.loss(whole)[0])


def test_mean_of_nothing_is_zero() -> None:
    mean, count = mean_over_all(torch.tensor([3.0]), torch.tensor([[1.0], [0.0]]), lambda x: x)
    assert mean.tolist() == [3.0, 0.0]
    assert count.tolist() == [1.0, 0.0]


def test_state_is_what_a_checkpoint_can_hold() -> None:
    state: State = {}
    build("dpo", auto_beta=True).loss(pairs_of([(0.1, 0.0)]), state=state)
    assert {k: v.shape for k, v in state.items()} == {"dpo.lead": ()}


@pytest.mark.parametrize(
    ("name", "options"),
    [("kto", {}), ("kto", {"kl": "balanced"}), ("bco", {}), ("dpo", {"auto_beta": True, "beta": 1.0})],
)
def test_rows_of_weight_zero_are_in_no_mean(name: str, options: dict[str, object]) -> None:
    """A process with a unit less trains on another one's again at weight 0: nobody else may notice."""
    objective = build(name, **({"beta": 1.0} | options))
    scores = [(1.0, 0.2), (0.4, -0.3), (3.0, 2.0)]
    whole = pairs_of(scores, weight=torch.tensor([1.0, 1, 1, 1, 0, 0]))
    own = pairs_of(scores[:2])
    state, other = {}, {}  # type: ignore[var-annotated]
    found, wanted = objective.loss(whole, state=state)[0], objective.loss(own, state=other)[0]
    torch.testing.assert_close(found[: len(wanted)], wanted)
    assert state == other
    unmarked = objective.loss(pairs_of(scores), state={})[0]
    assert not torch.allclose(unmarked[: len(wanted)], wanted)


def test_a_batch_of_fillers_alone_moves_nothing() -> None:
    state = {"bco.shift": torch.tensor(0.7, dtype=torch.float64)}
    build("bco", beta=1.0).loss(pairs_of([(3.0, 2.0)], weight=torch.zeros(2)), state=state)
    assert float(state["bco.shift"]) == pytest.approx(0.7)
    loss, metrics = build("kto", beta=1.0).loss(pairs_of([(3.0, 2.0)], weight=torch.zeros(2)))
    assert loss.isfinite().all()
    assert metrics["kl"].tolist() == [0.0, 0.0]
