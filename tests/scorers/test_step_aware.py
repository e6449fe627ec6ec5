"""SPO's judge: it starts as the scorer that it is put on, and then knows the timestep."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import scorers
from scorers.lrm_noise import NoiseLevels
from scorers.lrm_train import StepLearner
from scorers.pickscore import PickScore
from scorers.step_aware import STEPS, StepAware
from scorers.train import TrainOptions, train_scorer
from scorers.votes import Vote
from tests.scorers.contract import check_contract

PROMPTS = ["a cat", "a red dog", "trees"]
TIMES = torch.tensor([0, 400, 950])


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(3, 3, 40, 36, generator=torch.manual_seed(0))


@pytest.fixture
def trained(scorer: PickScore) -> StepAware:
    """A judge whose timestep changes something."""
    judge = StepAware.create(scorer)
    torch.nn.init.normal_(judge.steps.out.weight, std=0.05, generator=torch.manual_seed(1))
    return judge


def test_it_starts_as_the_scorer(scorer: PickScore, pictures: Tensor) -> None:
    judge = StepAware.create(scorer)
    wanted = scorer.score_tensor(pictures, PROMPTS)
    torch.testing.assert_close(judge.score_steps(pictures, TIMES, PROMPTS), wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(judge.score_tensor(pictures, PROMPTS), wanted, rtol=0, atol=1e-4)


def test_scale_and_shift_act_on_both_norms(scorer: PickScore, pictures: Tensor) -> None:
    for part in range(4):
        judge = StepAware.create(scorer)
        before = judge.score_steps(pictures, TIMES, PROMPTS)
        bias = torch.zeros(2, 4, 32)
        bias[1, part] = torch.linspace(-1, 1, 32)
        judge.steps.out.bias.data = bias.flatten()
        assert (judge.score_steps(pictures, TIMES, PROMPTS) - before).abs().max() > 1e-4, part


def test_the_timestep_matters_and_rows_do_not_mix(trained: StepAware, pictures: Tensor) -> None:
    same = pictures[:1].repeat(3, 1, 1, 1)
    found = trained.score_steps(same, TIMES, PROMPTS[:1] * 3)
    assert len({round(float(s), 3) for s in found}) == 3
    whole = trained.score_steps(pictures, TIMES, PROMPTS)
    rows = [trained.score_steps(pictures[i : i + 1], TIMES[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(torch.cat(rows), whole, rtol=0, atol=1e-4)
    clean = trained.score_steps(pictures, torch.zeros(3), PROMPTS)
    torch.testing.assert_close(trained.score_tensor(pictures, PROMPTS), clean, rtol=0, atol=1e-4)


def test_contract(trained: StepAware) -> None:
    check_contract(trained)


def test_saved_and_loaded(trained: StepAware, pictures: Tensor, tmp_path: Path) -> None:
    trained.save(tmp_path)
    found = scorers.load("step-aware", tmp_path)
    assert isinstance(found, StepAware)
    scores = [j.score_steps(pictures, TIMES, PROMPTS) for j in (found, trained)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-5)
    state = load_file(tmp_path / STEPS)
    save_file({k: v for k, v in state.items() if k != "out.bias"}, tmp_path / STEPS)
    with pytest.raises(ValueError, match=r"1 keys missing \(out.bias\)"):
        scorers.load("step-aware", tmp_path)
    (tmp_path / STEPS).unlink()
    with pytest.raises(FileNotFoundError, match="becomes a step-aware judge by training"):
        scorers.load("step-aware", tmp_path)


def test_wrong_shapes(trained: StepAware, pictures: Tensor) -> None:
    with pytest.raises(ValueError, match="as many timesteps"):
        trained.score_steps(pictures, TIMES[:2], PROMPTS)
    with pytest.raises(ValueError, match="3 prompts for 3 pictures"):
        trained.score_steps(pictures, TIMES, PROMPTS[:2])


def test_it_learns_from_predicted_pictures(scorer: PickScore) -> None:
    judge = StepAware.create(scorer)
    asked: list[Tensor] = []

    def look(x_t: Tensor, times: Tensor, prompts: list[str]) -> Tensor:
        asked.append(times)
        return x_t.sigmoid().repeat_interleave(4, 2).repeat_interleave(4, 3)

    learner = StepLearner(judge, NoiseLevels.vp(torch.linspace(0.99, 0.01, 1000)), look)
    x = torch.randn(12, 2, 3, 8, 8, generator=torch.manual_seed(0))
    votes = [Vote(a + 1, b - 1, "a cat", 1.0) for a, b in x]
    options = TrainOptions(
        steps=4, batch=6, learning_rate=1e-3, warmup=0, eval_every=2, weight_decay=0.0, keep="loss"
    )
    train_scorer(learner, votes[:8], votes[:8], options)
    assert judge.steps.out.weight.abs().max() > 0
    assert all(len(times) % 2 == 0 for times in asked)
    assert not any(p.requires_grad for p in judge.parameters())
