"""The four definitions of accuracy, against published code and by hand; and calibration."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch

from scorers.accuracy import (
    calibration_error,
    inversion_macro,
    log_loss,
    measure,
    pairs_micro,
    strict,
)
from tests.scorers.conftest import GOLDEN

DATA = json.loads((GOLDEN / "rank_accuracy.json").read_text())


def pairs(better: list[float], label: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels of all pairs of a list; less is better in both."""
    rows = list(itertools.combinations(range(len(label)), 2))

    def side(values: list[float]) -> torch.Tensor:
        signs = [(values[j] > values[i]) - (values[j] < values[i]) for i, j in rows]
        return 0.5 + 0.25 * torch.tensor(signs, dtype=torch.float64)

    return side(better), 0.5 + 2 * (side(label) - 0.5)


@pytest.mark.parametrize("case", DATA["cases"], ids=str)
def test_published_accuracies_of_lists(case: dict[str, list[float]]) -> None:
    prob, label = pairs(case["pred_rank"], case["gt_rank"])
    assert inversion_macro(prob, label, [0] * len(prob)) == pytest.approx(case["hpsv2_inversion"])
    prob, label = pairs([-s for s in case["scores"]], case["gt_rank"])
    assert pairs_micro(prob, label) == pytest.approx(case["imagereward_acc"])


def test_pooled_and_per_prompt() -> None:
    both = [pairs([-s for s in case["scores"]], case["gt_rank"]) for case in DATA["cases"]]
    prob, label = (torch.cat(side) for side in zip(*both, strict=True))
    assert pairs_micro(prob, label) == pytest.approx(DATA["imagereward_micro_acc"])
    ranked = [pairs(case["pred_rank"], case["gt_rank"]) for case in DATA["cases"]]
    prob, label = (torch.cat(side) for side in zip(*ranked, strict=True))
    groups = [i for i, (p, _) in enumerate(ranked) for _ in p]
    mean = sum(case["hpsv2_inversion"] for case in DATA["cases"]) / len(DATA["cases"])
    assert inversion_macro(prob, label, groups) == pytest.approx(mean)


def test_definitions_differ_where_they_should() -> None:
    prob, label = torch.tensor([0.5, 0.5, 0.9, 0.2]), torch.tensor([1.0, 0.5, 0.5, 1.0])
    assert strict(prob, label).tolist() == [0.0, 0.0, 0.5, 0.0]
    found = measure(prob, label, threshold=0.0, groups=["a", "a", "b", "b"])
    assert found.accuracy == pytest.approx((0.5 + 1 + 0.5 + 0) / 4)
    assert found.pairs_micro == 0.0
    assert found.inversion_macro == pytest.approx((1 + 0.5) / 2)
    assert math.isnan(pairs_micro(prob[1:3], label[1:3]))


def test_calibration_by_hand() -> None:
    prob = torch.tensor([0.8, 0.8, 0.2, 0.2, 0.8])
    label = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])  # right in 4 of 5 at confidence 0.8
    assert calibration_error(prob, label) == pytest.approx(0, abs=1e-6)
    assert calibration_error(prob, 1 - label) == pytest.approx(0.6, abs=1e-6)
    assert calibration_error(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])) == pytest.approx(0.5)
    assert log_loss(torch.full((3,), 0.5), torch.tensor([1.0, 0.0, 0.5])) == pytest.approx(math.log(2))
    assert log_loss(torch.tensor([0.0]), torch.tensor([1.0])) == pytest.approx(-math.log(1e-6))
