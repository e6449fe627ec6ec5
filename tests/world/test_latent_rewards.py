"""Latent rewards by noise level: the study in its smallest form, its table, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from diffalign.policy import Policy, load_policy
from diffalign.world.latent_rewards import (
    JUDGES,
    LatentPlan,
    gaps_at,
    levels_of,
    markdown,
    predicted_pictures,
    study,
    trained,
    write_table,
)
from scorers.lrm import Lrm
from scorers.votes import Vote
from tests.tiny import tiny_folder

START, END = "<!-- latent rewards -->", "<!-- /latent rewards -->"
SMALL = LatentPlan(votes=8, validation=4, heldout=6, levels=(0, 950), steps=2, batch=4)


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    decided = {"0": dict.fromkeys(JUDGES, 0.75), "950": dict.fromkeys(JUDGES, 0.5)}
    return {
        "plan": {"taste": "large", "batch": 4, "guidance": 7.5, "votes": 8},
        "decided": decided,
        "best_possible": 0.9,
        "votes_decided": 100,
        "best_step": 1,
        "steps_made": 2,
        "seconds_training": 3,
    }


def test_the_table_goes_between_the_marks(found: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    write_table(page, markdown(found))
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n\n| judge | t = 0 | t = 950 |")
    assert text.endswith(f"\n\n{END}\nafter\n")
    assert "old" not in text
    assert "| 0.750 | 0.500 |" in text
    assert "at most 0.050" in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        write_table(page, "table")
    assert page.read_text() == "no marks"


def test_a_model_of_another_plan_is_not_taken(tmp_path: Path) -> None:
    report = {"plan": json.loads(json.dumps(SMALL.__dict__))}
    (tmp_path / "accuracy.json").write_text(json.dumps(report))
    policy = load_policy(tiny_folder("sd", tmp_path))
    with pytest.raises(ValueError, match="of another plan"):
        trained(policy, replace(SMALL, seed=1), tmp_path)


def test_a_flow_is_judged_at_its_own_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward model is told 1000 sigma; latents are (1 - sigma) x0 + sigma n."""
    policy, asked = load_policy(tiny_folder("sd3", tmp_path)), []
    assert levels_of(policy).times.tolist() == pytest.approx(list(range(50, 1000, 50)))

    def score(x_t: torch.Tensor, t: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        asked.append((x_t, t))
        return x_t.mean((1, 2, 3))

    x0 = torch.full((8, 8, 8), 100.0)
    votes = [Vote(x0, -x0, "a red circle", 1.0)] * 3
    lrm = cast(Lrm, SimpleNamespace(score_latents=score))
    sigmas: list[float] = []

    def seen(policy: Policy, x_t: torch.Tensor, t: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        sigmas.extend(t.tolist())
        return predicted_pictures(policy, x_t, t, prompts)

    monkeypatch.setattr("diffalign.world.latent_rewards.predicted_pictures", seen)
    found = gaps_at(policy, lrm, {"seen": lambda x, p: x.mean((1, 2, 3))}, votes, 200, seed=0)
    (x_t, t), *more = asked
    assert not more
    assert t.tolist() == pytest.approx([200.0] * 6)
    assert sigmas == pytest.approx([0.2] * 6)
    assert x_t.mean((1, 2, 3)).tolist() == pytest.approx([80.0] * 3 + [-80.0] * 3, abs=0.2)
    assert found["lrm"].tolist() == pytest.approx([160.0] * 3, abs=0.3)
    assert found["seen"].shape == (3,)


def test_a_table_without_a_scorer_has_no_line_for_it(found: dict[str, Any]) -> None:
    decided = {t: {k: v for k, v in row.items() if k != "scorer"} for t, row in found["decided"].items()}
    assert JUDGES["scorer"] in markdown(found)
    assert JUDGES["scorer"] not in markdown(found | {"decided": decided})


def test_a_clean_picture_is_predicted_as_it_is(tmp_path: Path) -> None:
    policy = load_policy(tiny_folder("sd", tmp_path))
    x0 = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        seen = predicted_pictures(policy, x0, torch.zeros(2).long(), ["a red circle", "a blue square"])
        wanted = (policy.decode(x0) / 2 + 0.5).clamp(0, 1)
    assert seen.shape == (2, 3, 64, 64)
    assert (seen - wanted).abs().mean() < 0.05


@pytest.mark.slow
def test_the_whole_study(tmp_path: Path) -> None:
    first = study(SMALL, tmp_path)
    assert list(first["decided"]) == ["0", "950"]
    assert all(0 <= v <= 1 for level in first["decided"].values() for v in level.values())
    assert set(first["decided"]["0"]) == set(JUDGES)
    (tmp_path / "level-950.json").unlink()
    assert study(SMALL, tmp_path) == first
    Lrm.load(tmp_path).check_policy(load_policy("samples/shapes/unet").encoder_id("vae"), "vp")
    assert "| t = 950 |" in markdown(first)
