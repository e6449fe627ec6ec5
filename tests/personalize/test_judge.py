"""Judges: fitted to a person's own votes on a reward of other people, and refused where they saw too much."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.personalize.judge import JudgeOptions, train_judges
from diffalign.personalize.vpl import VplOptions
from scorers.pickscore import PickScore
from scorers.train_options import TrainOptions
from scorers.votes import Vote
from tests.scorers.conftest import tiny_clip, tiny_tokenizer

OPTIONS = JudgeOptions(
    groups=2, width=8,
    training=TrainOptions(
        loss="bradley-terry", learning_rate=1e-2, head_rate=3e-2, steps=80, batch=64, warmup=0,
        eval_every=40, weight_decay=0.0, schedule="constant", balance_prompts=False,
    ),
)  # fmt: skip


RED, BLUE = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])


def picture(share: float) -> torch.Tensor:
    """(3, 32, 32) of one colour, from blue to red."""
    return (share * RED + (1 - share) * BLUE)[:, None, None].expand(3, 32, 32)


def votes(name: str, likes_red: bool, count: int, seed: int) -> list[Vote]:
    """Somebody who likes red pictures, or blue ones."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        first, second = torch.rand(2, generator=generator).tolist()
        label = float((first > second) == likes_red)
        found.append(Vote(picture(first), picture(second), f"prompt {i % 20}", label, name))
    return found


@pytest.mark.slow
def test_a_judge_foretells_what_it_was_not_fitted_to() -> None:
    torch.manual_seed(0)
    backbone = PickScore(tiny_clip(), tiny_tokenizer())
    seen = [v for i in range(4) for v in votes(f"p{i}", i % 2 == 0, 60, i)]
    asked = votes("red", True, 60, 10) + votes("blue", False, 60, 11)
    judges = train_judges(backbone, seen, asked, ["other"], OPTIONS)
    assert min(judges.accuracy.values()) > 0.8
    assert judges.mean_accuracy == pytest.approx(sum(judges.accuracy.values()) / 2)
    pictures = torch.stack([picture(0.9), picture(0.1)])
    red, blue = (judges.of(n).score_tensor(pictures, ["a", "a"]) for n in ("red", "blue"))
    assert red[0] > red[1]
    assert blue[0] < blue[1]
    few = train_judges(backbone, seen, votes("few", True, 1, 3), [], OPTIONS)
    assert math.isnan(few.accuracy["few"])


@pytest.mark.parametrize("options", [OPTIONS, VplOptions(width=16, depth=1, steps=1)], ids=["pal", "vpl"])
def test_people_must_be_apart(options: JudgeOptions | VplOptions) -> None:
    backbone = PickScore(tiny_clip(), tiny_tokenizer())
    seen, asked = votes("anna", True, 2, 0), votes("ben", True, 2, 1)
    with pytest.raises(
        ValueError, match=r"1 people of the judge's training, 'anna' for one, were trained on"
    ):
        train_judges(backbone, seen, asked, ["anna"], options)
    with pytest.raises(ValueError, match="'anna' is on both sides"):
        train_judges(backbone, seen, seen, [], options)
    with pytest.raises(ValueError, match="each with its user"):
        train_judges(backbone, [v._replace(user="") for v in seen], asked, [], options)
    with pytest.raises(ValueError, match="fitted is 1"):
        type(options)(fitted=1)
