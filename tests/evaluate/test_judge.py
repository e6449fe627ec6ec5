"""Judging pictures: verdicts in order, obedience, marks of what was trained on, report and gallery files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.evaluate.judge import (
    Evaluation,
    Judge,
    _diversity,
    evaluate_pictures,
    load_judges,
    obedience,
    score,
)
from diffalign.evaluate.report import load_report, write_report
from diffalign.evaluate.stats import base_sd
from diffalign.world.grammar import Prompt, single_prompts
from diffalign.world.raters import TASTES, leaves_open
from diffalign.world.scorers import TasteLoader
from diffalign.world.shapes import render, sample_scenes


def paired(n: int = 12, seeds: int = 3) -> tuple[list[Prompt], Tensor, Tensor]:
    """Pictures of open prompts, and the same scenes with larger objects."""
    prompts = [p for p in single_prompts("heldout") if leaves_open(p, TASTES["large"])][:n]
    base, model = [], []
    for seed in range(seeds):
        scenes = sample_scenes(prompts, np.random.default_rng(seed))
        scenes.centre[:] = 0.5
        base.append(render(scenes))
        scenes.radius[:] = (scenes.radius + 0.08).clamp(max=0.45)
        model.append(render(scenes))
    pictures = [(torch.stack(x, 1) * 255).round().to(torch.uint8) for x in (base, model)]
    return prompts, pictures[0], pictures[1]


def judge(taste: str, held_out: bool) -> Judge:
    scorer = TasteLoader(taste).load(None, device="cpu", dtype=torch.float32)
    return Judge(name=f"shapes-{taste}", scorer=scorer, held_out=held_out)


@pytest.mark.slow
def test_larger_shapes_win_by_the_right_judge_only(tmp_path: Path) -> None:
    prompts, base, model = paired()
    texts = [str(p) for p in prompts]
    judges = [judge("large", True), judge("dark", True), judge("small", False)]
    evaluation = evaluate_pictures(texts, base, model, judges, "base", "aligned")
    report = evaluation.report()
    large, dark, small = report["comparisons"]
    assert (large["metric"], large["held_out"], small["held_out"]) == ("shapes-large", True, False)
    assert large["win_rate"] > 0.95
    assert large["mean_gain_sd"] > 0.5
    assert small["win_rate"] < 0.05
    assert (dark["wins"], dark["losses"]) == (0, 0)
    assert report["obedience"]["base"] > 0.95
    assert report["diversity"]["base"]["pixel_distance"] > 0
    write_report(tmp_path / "report.json", report)
    assert load_report(tmp_path / "report.json") == report
    page = evaluation.write_gallery(tmp_path / "gallery.html", report, "test").read_text()
    assert "Content-Security-Policy" in page
    assert texts[0] in page


def test_obedience_is_for_prompts_of_the_world_only() -> None:
    prompts, base, model = paired(3, 2)
    assert obedience(base, model, ["a photograph of a dog"] * 3) == {}
    assert set(obedience(base, model, [str(p) for p in prompts])) == {"base", "model"}


def test_scores_have_a_row_a_prompt() -> None:
    prompts, base, _ = paired(5, 2)
    assert score(judge("large", True).scorer, base, [str(p) for p in prompts], chunk=3).shape == (5, 2)


def test_roles_of_judges_are_checked() -> None:
    with pytest.raises(ValueError, match="cannot be held out"):
        load_judges(["a"], ["a"])
    with pytest.raises(ValueError, match="at least one held-out"):
        load_judges([], ["a"])


def test_obedience_says_whose_it_is() -> None:
    prompts, base, _ = paired(6, 2)
    assert len({(p.shapes, p.colours) for p in prompts}) == 6
    found = obedience(base, base.roll(1, 0), [str(p) for p in prompts])  # each the picture of another prompt
    assert found["base"] > 0.9
    assert found["model"] < 0.1


def test_report_says_whose_diversity_and_counts_gains_in_the_spread_of_the_base() -> None:
    noise = (torch.rand(3, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).byte()
    base = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
    scores = {"j": (base, 10 * base + 1)}  # its own spread is ten times that of the base
    evaluation = Evaluation(
        prompts=["a", "b", "c"],
        base_name="base",
        model_name="aligned",
        base=noise,
        model=noise[:, :1].repeat(1, 2, 1, 1, 1),
        judges=[Judge(name="j", scorer=judge("large", True).scorer, held_out=True)],
        scores=scores,
    )
    report = evaluation.report()
    assert report["diversity"]["model"]["pixel_distance"] == 0 < report["diversity"]["base"]["pixel_distance"]
    gain = (9 * base + 1).mean()
    assert report["comparisons"][0]["mean_gain_sd"] == pytest.approx(gain / base_sd(base))


def test_pictures_of_one_colour_have_a_diversity_too() -> None:
    black_and_white = torch.stack([torch.zeros(3, 64, 64), torch.full((3, 64, 64), 255.0)])[None].byte()
    assert _diversity(black_and_white)["vendi"] == pytest.approx(2.0, abs=1e-3)  # opposite, not alike
    assert _diversity(torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8))["vendi"] == pytest.approx(1.0)
    grey = torch.tensor([127, 128], dtype=torch.uint8).repeat(1, 2, 3, 64, 32)  # shrinks to 0.5 exactly
    assert _diversity(grey)["vendi"] == pytest.approx(1.0)


def test_vendi_sees_the_difference_between_shapes() -> None:
    _, base, _ = paired(6, 4)
    assert _diversity(base)["vendi"] > 1.4
