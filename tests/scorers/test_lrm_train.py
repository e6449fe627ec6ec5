"""Training on votes over noisy latents: levels, draws, the published loss, early stop, saved models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scorers.latent import load_latent
from scorers.lrm import Lrm, LrmOptions
from scorers.lrm_losses import dina_loss
from scorers.lrm_noise import NoiseLevels, time_features
from scorers.lrm_train import LRM_15, LatentLearner, NoiseOptions, NoisyLearner, accuracy_at
from scorers.train import TrainOptions, fit, train_scorer
from scorers.votes import Vote
from tests.tiny import tiny_pipeline

GOLDEN = Path(__file__).parents[1] / "golden" / "online" / "latent_reward.npz"
ALPHAS = torch.linspace(0.999, 0.005, 1000)
SIX = TrainOptions(
    steps=6, batch=4, learning_rate=1e-3, warmup=0, eval_every=3, balance_prompts=True, weight_decay=0.0
)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_pipeline("sd")


def model(pipeline: Any, options: LrmOptions | None = None) -> Lrm:
    return Lrm.of_pipeline(pipeline, vae_id="v", options=options or LrmOptions(guidance=1))


def votes(n: int, seed: int = 0) -> list[Vote]:
    """The first of two latents is preferred if its mean is higher."""
    x = torch.randn(n, 2, 8, 8, 8, generator=torch.manual_seed(seed)) * 0.3
    x += torch.randn(n, 2, 1, 1, 1, generator=torch.manual_seed(seed + 1))
    wins = x.mean((2, 3, 4)).diff(dim=1)[:, 0] < 0
    return [
        Vote(a, b, f"a red circle {i % 3}", float(w))
        for i, ((a, b), w) in enumerate(zip(x, wins, strict=True))
    ]


# ---------------------------------------------------------------------- noise


def test_levels_of_a_vp_process() -> None:
    levels = NoiseLevels.vp(ALPHAS)
    assert levels.times.tolist() == list(range(1, 1000, 50))
    torch.testing.assert_close(levels.signal.square() + levels.noise.square(), torch.ones(20))
    torch.testing.assert_close(levels.signal[0].square(), ALPHAS[1])
    x0, n = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), 10.0)
    found = levels.add_noise(x0, n, torch.tensor([0, 19]))[:, 0, 0, 0]
    wanted = ALPHAS[torch.tensor([1, 951])]
    torch.testing.assert_close(found, wanted.sqrt() + 10 * (1 - wanted).sqrt())


def test_levels_of_a_flow() -> None:
    levels = NoiseLevels.flow([0.0, 0.25, 1.0])
    assert levels.times.tolist() == [0, 250, 1000]
    found = levels.add_noise(torch.ones(3, 1, 1, 1), torch.full((3, 1, 1, 1), 5.0), torch.arange(3))
    assert found[:, 0, 0, 0].tolist() == [1, 0.75 + 1.25, 5]


def test_levels_that_there_are_not() -> None:
    for make in (lambda: NoiseLevels.vp(ALPHAS, [1000]), lambda: NoiseLevels.flow([1.5])):
        with pytest.raises(ValueError, match="must lie in"):
            make()
    with pytest.raises(ValueError, match="one level or more"):
        NoiseLevels.flow([])
    with pytest.raises(ValueError, match="must be even"):
        time_features(torch.ones(2), 3)
    assert time_features(torch.tensor([0.0, 7.0]), 4)[0].tolist() == [1, 1, 0, 0]


class Recorder(NoisyLearner):
    """Keeps what it is shown; scores are means of the latents."""

    seen: list[tuple[Tensor, Tensor]]

    def noisy_scores(self, x_t: Tensor, times: Tensor, prompts: list[str]) -> Tensor:
        self.seen = [*getattr(self, "seen", []), (x_t, times)]
        return x_t.mean((1, 2, 3)) * self.scorer.weight[0]


def recorder(noise: NoiseOptions | None = None) -> Recorder:
    return Recorder(torch.nn.Linear(1, 1), NoiseLevels.vp(ALPHAS), noise)


@pytest.mark.parametrize("shared", [False, True])
def test_both_sides_have_one_level_and_their_noise(shared: bool) -> None:
    learner = recorder(NoiseOptions(shared_noise=shared)).train()
    zero = [Vote(torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), "a", 1.0)] * 50
    learner.logit(zero)
    x_t, times = learner.seen[0]
    assert torch.equal(times[:50], times[50:])
    assert len(times.unique()) > 12
    same = (x_t[:50] == x_t[50:]).flatten(1).all(1)
    assert bool(same.all()) if shared else not bool(same.any())


def test_noise_is_new_in_training_and_the_same_in_evaluation() -> None:
    learner, some = recorder(), votes(4)
    for train in (True, True, False, False):
        learner.train(train).logit(some)
    (a, b, c, d) = (x for x, _ in learner.seen)
    assert not torch.equal(a, b)
    assert torch.equal(c, d)


def test_pictures_are_no_latents() -> None:
    learner = recorder()
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    for bad in ([Vote(picture, picture, "a", 1.0)], [Vote(torch.zeros(3), torch.zeros(3), "a", 1.0)]):
        with pytest.raises(ValueError, match="hold clean latents"):
            learner.logit(bad)
    mixed = [Vote(torch.zeros(4, 8, 8), torch.zeros(4, 8, 4), "a", 1.0)]
    with pytest.raises(ValueError, match="of one shape"):
        learner.logit(mixed)


# ---------------------------------------------------------------------- losses


class Given(NoisyLearner):
    """Scores that are given."""

    first: Tensor
    second: Tensor

    def noisy_scores(self, x_t: Tensor, times: Tensor, prompts: Sequence[str]) -> Tensor:
        raise AssertionError("gaps are given, no picture is scored")

    def gaps(self, some: Sequence[Vote]) -> tuple[Tensor, Tensor]:
        return self.first - self.second, torch.full((len(some),), 0.4)


def test_the_published_pair_loss_with_its_gradients() -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        d = {k: torch.as_tensor(file[k]) for k in file.files}
    names = ("text", "image_0", "image_1", "logit_scale_log")
    text, image_0, image_1, tau = leaves = [d[k].clone().requires_grad_() for k in names]
    learner = Given(torch.nn.Linear(1, 1), NoiseLevels.vp(ALPHAS))
    learner.first, learner.second = (tau.exp() * F.cosine_similarity(x, text) for x in (image_0, image_1))
    some = [Vote("", "", "", float(label)) for label in d["label_0"]]
    count = d["num_examples_per_prompt"]
    loss = learner(some, "pickscore", count) / (1 / count).sum()
    torch.testing.assert_close(loss, d["pair_loss"], rtol=1e-4, atol=1e-5)
    for name, grad in zip(names, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(grad, d[f"grad_{name}"], rtol=1e-4, atol=1e-5)


def test_dina_losses_see_the_noise_of_the_pair() -> None:
    learner = Given(torch.nn.Linear(1, 1), NoiseLevels.vp(ALPHAS), NoiseOptions(loss="thurstone"))
    learner.first, learner.second = torch.tensor([1.0, 0.2]), torch.tensor([0.0, 0.9])
    some = [Vote("", "", "", 1.0), Vote("", "", "", 0.0)]
    wanted = dina_loss(learner.first - learner.second, torch.full((2,), 0.4), torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(learner(some, "pickscore"), wanted.sum())


# ---------------------------------------------------------------------- training


def test_what_trains(pipeline: Any) -> None:
    two = replace(SIX, steps=2, eval_every=1)
    for train_text in (True, False):
        learner = LatentLearner(model(pipeline), NoiseLevels.vp(ALPHAS), NoiseOptions(train_text=train_text))
        before = {k: v.clone() for k, v in learner.scorer.state_dict().items()}
        train_scorer(learner, votes(8), votes(8), replace(two, keep="loss"))
        moved = {k for k, v in learner.scorer.state_dict().items() if not torch.equal(v, before[k])}
        assert bool([k for k in moved if k.startswith("texts.")]) == train_text
        for part in ("trunk.net.time_embedding", "trunk.net.mid_block", "head.visual", "head.logit_scale"):
            assert [k for k in moved if k.startswith(part)], part
        assert not any(p.requires_grad for p in learner.parameters())
        assert not learner.training


@pytest.mark.slow
def test_a_run_twice_is_the_same(pipeline: Any) -> None:
    found = []
    for _ in range(2):
        learner = LatentLearner(model(pipeline), NoiseLevels.vp(ALPHAS))
        found.append((train_scorer(learner, votes(8), votes(4, 5), SIX), learner.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(v, found[1][1][k]) for k, v in found[0][1].items())


@pytest.mark.slow
def test_fit_writes_a_model_that_loads(pipeline: Any, tmp_path: Path) -> None:
    learner = LatentLearner(model(pipeline), NoiseLevels.vp(ALPHAS))
    some = [
        v._replace(prompt=f"{'abcdefghijklmnopqrstuvwxyz'[i % 26]} circle") for i, v in enumerate(votes(40))
    ]
    report = fit(learner, some, tmp_path / "out", SIX)
    assert {"held_out", "held_out_before", "best_step"} <= report.keys()
    x, t = torch.randn(2, 8, 8, 8), torch.tensor([3, 700])
    found = load_latent("lrm", tmp_path / "out").score_latents(x, t, ["a", "b"])
    assert torch.equal(found, learner.scorer.score_latents(x, t, ["a", "b"]))
    with pytest.raises(FileExistsError, match="holds a trained scorer"):
        fit(learner, some, tmp_path / "out", SIX)


def test_published_settings() -> None:
    assert (LRM_15.steps, LRM_15.batch, LRM_15.learning_rate, LRM_15.warmup) == (4000, 128, 1e-5, 500)
    assert LRM_15.schedule == "constant"
    assert LRM_15.balance_prompts


@pytest.mark.slow
@pytest.mark.parametrize("head", ["cosine", "dina"])
def test_it_learns_and_less_noise_is_easier(pipeline: Any, head: str) -> None:
    dina = NoiseOptions(shared_noise=True, loss="thurstone")
    options = LrmOptions(head="dina", taps=(1, 3)) if head == "dina" else LrmOptions(guidance=1)
    learner = LatentLearner(
        model(pipeline, options), NoiseLevels.vp(ALPHAS), dina if head == "dina" else NoiseOptions()
    )
    more = TrainOptions(steps=60, batch=16, learning_rate=2e-3, warmup=5, eval_every=20, weight_decay=0.0)
    run = train_scorer(learner, votes(200), votes(60, 9), more)
    assert run.validation.accuracy > 0.8
    little, much = (accuracy_at(learner, votes(200, 50), NoiseLevels.vp(ALPHAS, [t])) for t in (1, 999))
    assert little.decided > 0.85
    assert little.log_loss < much.log_loss  # shared noise cancels in the order, but not in how sure it is
    assert len(learner.levels.times) == 20
