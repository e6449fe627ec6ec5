"""Training on votes: it learns, keeps the best, stops early, and what it saves reloads."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import scorers
from scorers.pickscore import PickScore
from scorers.train import (
    TrainOptions,
    Vote,
    evaluate,
    fit,
    rate_at,
    split_by_prompt,
    stack_images,
    train_scorer,
)

OPTIONS = TrainOptions(
    steps=40, batch=16, learning_rate=2e-3, warmup=4, weight_decay=0.0, eval_every=10, patience=10
)


def bright_votes(n: int, seed: int, prompts: tuple[str, ...] = ("a", "b", "c")) -> list[Vote]:
    """Votes of somebody who always prefers the brighter picture."""
    generator = torch.Generator().manual_seed(seed)
    votes = []
    for i in range(n):
        level = torch.rand(2, generator=generator)
        first, second = (
            (v * torch.ones(3, 32, 32) + 0.1 * torch.rand(3, 32, 32, generator=generator)).clamp(0, 1)
            for v in level
        )
        votes.append(Vote(first, second, prompts[i % len(prompts)], float(level[0] > level[1])))
    return votes


def test_it_learns_a_taste(scorer: PickScore) -> None:
    run = train_scorer(scorer, bright_votes(128, 0), bright_votes(64, 1), OPTIONS)
    assert run.validation.accuracy > 0.9
    assert run.best_step > 0
    assert evaluate(scorer, bright_votes(64, 2), run.validation.threshold).accuracy > 0.9
    assert not any(p.requires_grad for p in scorer.parameters())


def test_training_repeats_and_the_best_weights_are_kept(scorer: PickScore) -> None:
    state = {k: v.clone() for k, v in scorer.state_dict().items()}
    options = replace(OPTIONS, steps=8, eval_every=4)
    votes, validation = bright_votes(32, 0), bright_votes(16, 1)
    train_scorer(scorer, votes, validation, options)
    first = {k: v.clone() for k, v in scorer.state_dict().items()}
    scorer.load_state_dict(state)
    run = train_scorer(scorer, votes, validation, options)
    assert all(torch.equal(v, first[k]) for k, v in scorer.state_dict().items())
    assert evaluate(scorer, validation) == run.validation


def test_early_stop_gives_back_the_start_when_nothing_helps(scorer: PickScore) -> None:
    votes = bright_votes(16, 0)
    perverse = [
        vote._replace(label=0.5) for vote in bright_votes(16, 1)
    ]  # at threshold 1 all ties, right from the start
    before = {k: v.clone() for k, v in scorer.state_dict().items()}
    run = train_scorer(scorer, votes, perverse, replace(OPTIONS, eval_every=2, patience=3))
    assert run.steps == 6
    assert run.best_step == 0
    assert all(torch.equal(v, before[k]) for k, v in scorer.state_dict().items())


@pytest.mark.slow
def test_fit_splits_saves_and_reports(scorer: PickScore, tmp_path: Path) -> None:
    prompts = tuple(f"{a} {b}" for a in "abcdefgh" for b in "ijklmnop")
    report = fit(scorer, bright_votes(192, 0, prompts), tmp_path / "out", OPTIONS)
    assert report["held_out"]["accuracy"] > 0.85
    assert report["held_out"]["accuracy"] > report["held_out_before"]["accuracy"]
    assert json.loads((tmp_path / "out" / "accuracy.json").read_text()) == report
    again = scorers.load("pickscore", weights=tmp_path / "out")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.score_tensor(x, ["a", "b"]), scorer.score_tensor(x, ["a", "b"]))


def test_split_by_prompt_is_clean_and_does_not_move() -> None:
    votes = bright_votes(300, 0, tuple(map(str, range(100))))
    parts = split_by_prompt(votes, (0.8, 0.1, 0.1))
    seen = [{vote.prompt for vote in part} for part in parts]
    assert sum(map(len, parts)) == 300
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert 65 <= len(seen[0]) <= 92
    fewer = split_by_prompt(votes[:50], (0.8, 0.1, 0.1))
    assert all({v.prompt for v in fewer[i]} <= seen[i] for i in range(3))


def test_votes_may_be_plain_tuples_of_files_and_sizes(scorer: PickScore) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40), "red").save(buffer, "PNG")
    assert stack_images(scorer, [buffer.getvalue(), torch.rand(3, 32, 32)]).shape == (2, 3, 32, 32)
    votes = [(buffer.getvalue(), torch.rand(3, 32, 32), "a", 1.0)] * 4
    run = train_scorer(scorer, votes, votes, replace(OPTIONS, steps=2, batch=2))  # type: ignore[arg-type]
    assert run.steps == 2


def test_prompts_are_balanced(scorer: PickScore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    import scorers.learners as module

    loss = module.pickscore_loss

    def spy(*args: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(options["num_examples"])
        return loss(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "pickscore_loss", spy)
    votes = bright_votes(4, 0, ("a", "a", "a", "b"))
    train_scorer(scorer, votes, votes, replace(OPTIONS, steps=1, batch=4))
    assert isinstance(seen[0], torch.Tensor)
    assert sorted(seen[0].tolist()) == [1, 3, 3, 3]


def test_rate_warms_up_and_falls_to_zero() -> None:
    options = TrainOptions(steps=100, warmup=10)
    rates = [rate_at(step, options) for step in range(101)]
    assert 0 < rates[0] < rates[5] < rates[10] == 1.0
    assert rates[10] > rates[50] > rates[99] > rates[100] == 0


def test_bad_input_is_named(scorer: PickScore) -> None:
    votes = bright_votes(4, 0)
    with pytest.raises(ValueError, match="no training votes"):
        train_scorer(scorer, [], votes)
    with pytest.raises(ValueError, match="vote 1 has label 2"):
        train_scorer(scorer, [votes[0], votes[1]._replace(label=2.0)], votes)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        TrainOptions(steps=0)
    with pytest.raises(ValueError, match="learning_rate"):
        TrainOptions(learning_rate=-1)


def test_a_loss_that_explodes_is_reported(scorer: PickScore) -> None:
    scorer.clip.visual_projection.weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train_scorer(scorer, bright_votes(8, 0), bright_votes(8, 1), replace(OPTIONS, steps=2))
