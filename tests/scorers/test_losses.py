"""PickScore's loss and tie-aware accuracy against the published implementation, and by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scorers.accuracy import THRESHOLDS, best_threshold, measure, tie_aware
from scorers.losses import contrastive_loss, pickscore_loss
from tests.scorers.conftest import GOLDEN


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as found:
        return {key: torch.from_numpy(np.asarray(found[key])) for key in found.files}


@pytest.mark.parametrize("negatives", [False, True])
def test_pickscore_loss_and_gradients(negatives: bool) -> None:
    data, key = golden("pickscore_loss"), f"neg{int(negatives)}"
    text, image_0, image_1 = (data[k].clone().requires_grad_() for k in ("text", "image_0", "image_1"))
    loss = pickscore_loss(
        text,
        image_0,
        image_1,
        scale=data["logit_scale"],
        label_0=data["label_0"],
        num_examples=data["num_examples_per_prompt"],
        in_batch_negatives=negatives,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(loss, data[f"loss_{key}"], **close)
    torch.testing.assert_close(text.grad, data[f"grad_text_{key}"], **close)
    torch.testing.assert_close(image_0.grad, data[f"grad_img0_{key}"], **close)
    torch.testing.assert_close(image_1.grad, data[f"grad_img1_{key}"], **close)


def test_loss_by_hand() -> None:
    # scores 2 and 1: softmax gives the first sigmoid(1)
    text, first, second = torch.eye(2)[:1], torch.tensor([[2.0, 0]]), torch.tensor([[1.0, 0]])
    win, tie, soft = (
        float(pickscore_loss(text, first, second, scale=1.0, label_0=torch.tensor([label])))
        for label in (1.0, 0.5, 0.7)
    )
    p = 1 / (1 + math.exp(-1))
    assert win == pytest.approx(-math.log(p))
    assert tie == pytest.approx(-0.5 * (math.log(p) + math.log(1 - p)) - math.log(2))
    assert soft == pytest.approx(-0.7 * math.log(p) - 0.3 * math.log(1 - p))


def test_a_predicted_tie_costs_nothing_when_it_is_one() -> None:
    same = torch.nn.functional.normalize(torch.randn(3, 4), dim=1)
    loss = pickscore_loss(same, same, same, scale=100.0, label_0=torch.full((3,), 0.5))
    assert float(loss) == pytest.approx(0, abs=1e-6)


def test_weight_sum_makes_parts_add_up_to_the_whole() -> None:
    data = golden("pickscore_loss")
    total = (1 / data["num_examples_per_prompt"]).sum()

    def loss(rows: slice) -> Tensor:
        return pickscore_loss(
            data["text"][rows],
            data["image_0"][rows],
            data["image_1"][rows],
            scale=data["logit_scale"],
            label_0=data["label_0"][rows],
            num_examples=data["num_examples_per_prompt"][rows],
            weight_sum=total,
        )

    torch.testing.assert_close(loss(slice(0, 2)) + loss(slice(2, 5)), data["loss_neg0"])


def test_contrastive_loss_is_small_only_for_matching_rows() -> None:
    text = torch.eye(4)
    assert float(contrastive_loss(text, text, scale=50.0)) < 1e-6
    assert float(contrastive_loss(text, text.roll(1, 0), scale=50.0)) > 10


def test_tie_aware_accuracy_at_every_threshold() -> None:
    data = golden("pickscore_eval")
    assert data["thresholds"].tolist() == pytest.approx(list(THRESHOLDS))
    found = [tie_aware(data["prob_0"], data["label_0"], t).mean() for t in THRESHOLDS]
    torch.testing.assert_close(torch.stack(found), data["acc"])
    assert best_threshold(data["prob_0"], data["label_0"]) == THRESHOLDS[int(data["acc"].argmax())]


def test_measure_by_hand() -> None:
    prob = torch.tensor([0.9, 0.2, 0.6, 0.5])
    label = torch.tensor([1.0, 1.0, 0.5, 0.0])
    found = measure(prob, label, threshold=0.0)
    assert found.accuracy == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert found.decided == pytest.approx((1 + 0 + 0.5) / 3)
    assert (found.votes, found.ties) == (4, 1)
    assert measure(prob, label).threshold == 0.6  # calls a tie what was wrong, and rightly the third
