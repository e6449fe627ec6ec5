"""The implicit reward: by hand, its invariances, from a finished run, and its accuracy on votes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import scorers
from diffalign.diffusion.corrupt import draw_seed, seeded_noise
from diffalign.diffusion.timesteps import Uniform
from diffalign.label.implicit import ImplicitScorer, fitted
from diffalign.label.implicit_accuracy import CEILING, accuracies, contest, markdown
from diffalign.label.judges import Judge
from diffalign.policy import Policy, load_policy
from diffalign.world.grammar import Prompt, single_prompts
from diffalign.world.raters import named_rater
from diffalign.world.shapes import draw
from scorers.base import ScorerBase
from tests.tiny import tiny_folder
from tests.train.runs import tiny_run

NAME = "diffalign.label.implicit:ImplicitScorer"
PROMPTS = ["a red circle", "a blue square", "a red circle"]


def aligned(folder: Path, family: str = "sd") -> Policy:
    """A policy that differs from its base, by a LoRA that is not zero."""
    policy = load_policy(tiny_folder(family, folder), {"rank": 2, "alpha": 4})
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.2 * torch.randn_like(weight)
    return policy


def pictures() -> Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
def test_reward_by_hand(tmp_path: Path) -> None:
    """One time, one noise: the base's squared error less the policy's."""
    policy = aligned(tmp_path)
    scorer = ImplicitScorer(policy, Uniform(low=0.4, high=0.6), draws=1, seed=5)
    found = scorer.score_tensor(pictures(), PROMPTS)
    x0 = policy.scale_latents(policy.encode_images(2 * pictures() - 1)[0])
    noise = seeded_noise([draw_seed("implicit", 5, 0)], x0[:1]).expand_as(x0)
    t = torch.full((3,), 500)
    x_t = policy.process.add_noise(x0, noise, t)
    cond = policy.collate_prompts(policy.encode_prompts(PROMPTS))
    with torch.no_grad():
        mine = (policy.predict(x_t, t, cond) - noise).square().mean((1, 2, 3))
        with policy.base():
            base = (policy.predict(x_t, t, cond) - noise).square().mean((1, 2, 3))
    torch.testing.assert_close(found, base - mine, atol=1e-6, rtol=0)
    assert found.abs().min() > 1e-4


@pytest.mark.parametrize("family", ["sd", pytest.param("sd3", marks=pytest.mark.slow)])
def test_batch_equals_single_and_the_base_is_worth_nothing(family: str, tmp_path: Path) -> None:
    scorer = ImplicitScorer(aligned(tmp_path, family), draws=3)
    whole = scorer.score_tensor(pictures(), PROMPTS)
    single = torch.cat([scorer.score_tensor(x[None], [p]) for x, p in zip(pictures(), PROMPTS, strict=True)])
    torch.testing.assert_close(single, whole, atol=1e-5, rtol=0)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(scorer(pictures(), PROMPTS, chunk=2).score, whole, atol=1e-5, rtol=0)
    fresh = ImplicitScorer(load_policy(tiny_folder(family, tmp_path), {"rank": 2}), draws=2)
    assert fresh.score_tensor(pictures(), PROMPTS).tolist() == [0.0] * 3
    assert not any(p.requires_grad for p in scorer.policy.denoiser.parameters())


def test_times_are_spread_over_the_recipes_own(tmp_path: Path) -> None:
    policy = aligned(tmp_path)
    seen: list[int] = []
    scorer = ImplicitScorer(policy, Uniform(low=0.8, high=1.0), draws=4)
    policy_predict = policy.predict

    def watch(x_t: Tensor, t: Tensor, cond: dict[str, Tensor], sizes: Tensor | None = None) -> Tensor:
        seen.append(int(t[0]))
        return policy_predict(x_t, t, cond, sizes)

    policy.predict = watch  # type: ignore[method-assign]
    scorer.score_tensor(pictures()[:1], PROMPTS[:1])
    assert seen == [825, 875, 925, 975] * 2


def test_pictures_of_any_size_are_fitted() -> None:
    x = pictures()
    assert torch.equal(fitted(x, 64), x)
    wide = torch.zeros(1, 3, 32, 96)
    wide[..., 32:64] = 1
    assert fitted(wide, 32).min() == 1
    assert fitted(wide, 64).shape == (1, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["{rank: 2, alpha: 4}", "null"])
def test_a_finished_run_is_a_scorer(adapter: str, tmp_path: Path) -> None:
    run = tiny_run("sd", tmp_path, tmp_path / "run", "steps=3", "ema=0", f"policy.adapter={adapter}")
    scorer = scorers.load(NAME, run.dir)
    assert isinstance(scorer, ImplicitScorer)
    assert scorer.side == 64
    assert scorer.temperature == pytest.approx(2 / 500)
    found = scorer.score_tensor(pictures(), PROMPTS)
    assert found.abs().min() > 0
    pair = scorer.compare(pictures()[:1], pictures()[1:2], PROMPTS[0])
    expected = scorer.score_tensor(pictures()[:2], [PROMPTS[0]] * 2)
    assert pair.logit.item() == pytest.approx(250 * (expected[0] - expected[1]).item(), rel=1e-3)


def test_a_run_is_needed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="finished diffalign run"):
        scorers.load(NAME)
    with pytest.raises(FileNotFoundError):
        scorers.load(NAME, tmp_path)
    with pytest.raises(ValueError, match="one \\(t, noise\\) at least"):
        ImplicitScorer(aligned(tmp_path), draws=0)


class Utility(ScorerBase):
    """Whose votes they are, or the opposite."""

    name = "utility"
    licence = "Apache-2.0"
    citation = "none"

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = sign

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        from diffalign.world.grammar import parse

        return self.sign * named_rater("dark").score(x01, [parse(p) for p in prompts])


def test_accuracy_stands_beside_the_ceiling() -> None:
    rng = np.random.default_rng(0)
    prompts: Sequence[Prompt] = single_prompts("heldout")[:24]
    shown = torch.stack([(draw(prompts, rng) * 255).round().byte() for _ in range(2)], 1)
    game = contest("in", prompts, shown, named_rater("dark"), rng)
    judges = [Judge(name=n, scorer=Utility(s), id=n) for n, s in (("same", 1.0), ("opposite", -1.0))]
    results = {r.scorer: r for r in accuracies([game], judges)}
    ceiling = results[CEILING]
    assert ceiling.votes == int((game.votes != 0.5).sum()) <= 24
    assert ceiling.accuracy == results["same"].accuracy == pytest.approx(1 - results["opposite"].accuracy)
    assert 0.6 < ceiling.accuracy <= 1
    assert ceiling.low < ceiling.accuracy <= ceiling.high
    rows = [vars(r) for r in results.values()]
    assert markdown(rows).splitlines()[0] == "| scorer | in |"
    assert len(markdown(rows).splitlines()) == 5
