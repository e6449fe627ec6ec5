"""The tiny CLIP of the shapes world, simulated votes, and the whole recipe in a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffalign.train.checkpoint import load_checkpoint
from diffalign.world.clip import (
    FINETUNE,
    ClipSizes,
    ScorerPlan,
    best_possible,
    build_shapes_clip,
    make_scorer,
    pretrain,
    simulate_votes,
)
from diffalign.world.grammar import is_heldout, parse
from diffalign.world.models import clip_tokenizer, count_parameters
from diffalign.world.raters import named_rater
from scorers.pickscore import PickScore

SMALL = ClipSizes(width=32, heads=2, vision_layers=1, text_layers=1, projection=16)
PLAN = ScorerPlan(
    votes=24,
    validation_votes=8,
    heldout_votes=8,
    pretrain_steps=4,
    pretrain_batch=8,
    save_every=2,
    finetune=replace(FINETUNE, steps=2, batch=8, eval_every=1),
)


def test_default_size_and_reproducible_weights() -> None:
    clip = build_shapes_clip()
    assert 0.9e6 < count_parameters(clip) < 1.6e6
    state = build_shapes_clip().state_dict()
    assert all(torch.equal(v, state[k]) for k, v in clip.state_dict().items())


def test_building_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    build_shapes_clip(SMALL)
    assert torch.equal(torch.rand(1), wanted)


def test_every_word_changes_the_text_features() -> None:
    scorer = PickScore(build_shapes_clip(SMALL), clip_tokenizer())
    texts = [
        "a red circle",
        "a blue circle",
        "a red star",
        "a large red circle",
        "a red circle on a red background",
    ]
    features = scorer.encode_prompts(texts)
    assert torch.cdist(features, features).add(torch.eye(5)).min() > 1e-4


def test_votes_follow_the_rater() -> None:
    rater = named_rater("large")
    votes, gap = simulate_votes(60, rater, np.random.default_rng(0), "heldout")
    labels = torch.tensor([vote.label for vote in votes])
    assert all(is_heldout(parse(vote.prompt)) for vote in votes)
    assert set(labels.tolist()) <= {0.0, 0.5, 1.0}
    found = best_possible(gap, labels, rater)
    assert 0.7 < found.decided < 1  # noisy, and far from chance
    assert best_possible(-gap, labels, rater).decided == pytest.approx(1 - found.decided, abs=1e-6)
    assert 0.2 < float((gap > 0).float().mean()) < 0.8  # bad pictures come first as often as second


def test_pretraining_resumes(tmp_path: Path) -> None:
    def run(work: Path) -> dict[str, torch.Tensor]:
        scorer = PickScore(build_shapes_clip(SMALL), clip_tokenizer())
        pretrain(scorer, PLAN, work)
        return scorer.state_dict()

    whole = run(tmp_path / "whole")
    assert [p.name for p in (tmp_path / "whole").iterdir()] == ["step-000004"]

    class StopError(Exception):
        pass

    def stop_at_two(*args: object) -> None:
        save(*args)
        if args[-1] == 2:
            raise StopError

    import diffalign.world.clip as module

    save = module._save_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_save_state", stop_at_two)
        with pytest.raises(StopError):
            run(tmp_path / "parts")
    half = load_checkpoint(tmp_path / "parts" / "step-000002").part("policy")
    scorer = PickScore(build_shapes_clip(SMALL), clip_tokenizer())
    optimizer = torch.optim.AdamW(scorer.parameters())
    assert module._resume(scorer, optimizer, PLAN, tmp_path / "parts") == 2
    assert all(torch.equal(p, half[k]) for k, p in scorer.named_parameters())
    parts = run(tmp_path / "parts")
    assert all(torch.equal(v, whole[k]) for k, v in parts.items())
    with pytest.raises(ValueError, match="belongs to the plan"):
        pretrain(
            PickScore(build_shapes_clip(SMALL), clip_tokenizer()), replace(PLAN, seed=1), tmp_path / "parts"
        )


def test_the_whole_recipe(tmp_path: Path) -> None:
    report = make_scorer(PLAN, tmp_path / "work", tmp_path / "out", SMALL)
    assert report == json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert report["held_out"]["votes"] == report["best_possible"]["votes"] == 8
    assert report["taste"] == "large"
    import scorers

    found = scorers.load("pickscore", weights=tmp_path / "out")(torch.rand(2, 3, 64, 64), "a red circle")
    assert found.score.shape == (2,)
