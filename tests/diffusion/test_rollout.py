"""Recorded runs: which steps are stochastic, branching, replay on UNet and DiT, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffalign.config import dump, load
from diffalign.diffusion.corrupt import draw_seed, seeded_noise
from diffalign.diffusion.rollout import Guided, Trajectories, replay, rollout
from diffalign.diffusion.rollout_options import Branching, Recorder, RolloutOptions, StochasticSteps
from diffalign.diffusion.transitions import TRANSITIONS, Cps, Ddim, Dpm2, FlowSde
from diffalign.policy import Policy, load_policy
from tests.tiny import tiny_folder

FAMILIES = ["sd", "sd3"]
SEEDS = [11, 12, 13]


def policy_of(family: str, folder: Path) -> Policy:
    """A LoRA that does something, with dropout (off) and gradient checkpointing."""
    policy = load_policy(tiny_folder(family, folder), {"rank": 2, "alpha": 4, "dropout": 0.5})
    policy.set_reference()
    policy.denoiser.enable_gradient_checkpointing()
    policy.denoiser.eval()
    shake(policy, 0.05)
    return policy


def shake(policy: Policy, size: float) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def guided(policy: Policy, scale: float = 5.0, rows: int = 3) -> Guided:
    prompts = ["a red circle", "a blue square", "a small green star"][:rows]
    cond, uncond = (policy.collate_prompts(policy.encode_prompts(p)) for p in (prompts, [""] * rows))
    return Guided(policy=policy, cond=cond, uncond=uncond, scale=scale)


def options_for(family: str, **changes: object) -> RolloutOptions:
    transition = FlowSde() if family == "sd3" else Ddim()
    return replace(RolloutOptions(steps=4, transition=transition), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def policy(family: str, folder: Path) -> Policy:
    return policy_of(family, folder)


@pytest.fixture(scope="module")
def run(family: str, policy: Policy) -> Trajectories:
    return rollout(guided(policy), SEEDS, options_for(family, recorder=Recorder(means=True)))


def ratios(predict: Guided, run: Trajectories) -> Tensor:
    found = [replay(predict, run, r.x, r.x_next, r.step).logp - r.logp for r in run.records]
    return torch.stack(found).exp()


def test_a_replay_has_ratio_one(policy: Policy, run: Trajectories) -> None:
    """In fp32 with LoRA, guidance and gradient checkpointing; every step, every image."""
    assert [r.step for r in run.records] == [0, 1, 2]
    ratio = ratios(guided(policy), run)
    assert (ratio - 1).abs().max() <= 1e-6
    gradients = torch.autograd.grad(ratio.sum(), list(policy.trainable().values()))
    assert all(g.isfinite().all() for g in gradients)
    assert max(float(g.abs().max()) for g in gradients) > 0


def test_rows_of_different_steps_replay_in_one_batch(policy: Policy, run: Trajectories) -> None:
    rows, steps = torch.tensor([2, 0]), torch.tensor([0, 2])
    x = torch.stack([run.records[s].x[r] for s, r in zip(steps, rows, strict=True)])
    x_next = torch.stack([run.records[s].x_next[r] for s, r in zip(steps, rows, strict=True)])
    old = torch.stack([run.records[s].logp[r] for s, r in zip(steps, rows, strict=True)])
    with torch.no_grad():
        step = replay(guided(policy).rows(rows), run, x, x_next, steps)
    assert (step.logp - old).abs().max() <= 1e-6
    kept = torch.stack([run.records[s].mean[r] for s, r in zip(steps, rows, strict=True)])
    torch.testing.assert_close(step.mean, kept, rtol=1e-5, atol=1e-5)


def test_another_policy_has_another_ratio(policy: Policy, run: Trajectories) -> None:
    with policy.reference():
        other = ratios(guided(policy), run)
    assert not other.requires_grad
    assert (other - 1).abs().max() > 1e-5


@pytest.mark.slow
def test_an_image_depends_on_its_own_seed_alone(family: str, policy: Policy, run: Trajectories) -> None:
    alone = rollout(guided(policy).rows(torch.tensor([1])), SEEDS[1:2], options_for(family))
    torch.testing.assert_close(alone.x0, run.x0[1:2], rtol=1e-4, atol=1e-4)
    for one, of_all in zip(alone.records, run.records, strict=True):
        torch.testing.assert_close(one.x, of_all.x[1:2], rtol=1e-4, atol=1e-4)
        assert torch.equal(of_all.x_next, run.records[of_all.step + 1].x) if of_all.step < 2 else True
    shared = rollout(guided(policy), SEEDS, options_for(family), starts=[5, 5, 5])
    assert torch.equal(shared.records[0].x[0], shared.records[0].x[2])
    assert not torch.equal(shared.records[0].x_next[0], shared.records[0].x_next[2])


@pytest.mark.slow
def test_without_noise_it_samples_as_the_pipeline_does(family: str, policy: Policy) -> None:
    """From the same x_T, an ODE run ends at the pipeline's own latents."""
    options = options_for(family, stochastic=StochasticSteps(which="none"))
    made = rollout(guided(policy), SEEDS, options)
    assert made.records == ()
    start = seeded_noise([draw_seed("start", s) for s in SEEDS], torch.empty(3, 8, 8, 8))
    with policy._sampling():
        out = policy.pipeline(
            prompt=["a red circle", "a blue square", "a small green star"],
            latents=start, num_inference_steps=4, guidance_scale=5.0,
            output_type="latent", height=policy.side, width=policy.side,
            **policy.family.generate_options(policy.pipeline, policy.text_length),
        ).images  # fmt: skip
    torch.testing.assert_close(made.x0, out, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_half_precision_records_replay_what_was_kept(family: str, policy: Policy) -> None:
    made = rollout(guided(policy), SEEDS, options_for(family, recorder=Recorder(dtype="bf16")))
    assert made.records[0].x.dtype == torch.bfloat16
    with torch.no_grad():
        assert (ratios(guided(policy), made) - 1).abs().max() <= 1e-6


@pytest.mark.slow
def test_branching(family: str, policy: Policy) -> None:
    asked: list[tuple[Tensor, Tensor]] = []

    def score(candidates: Tensor, t: Tensor) -> Tensor:
        asked.append((candidates, t))
        return candidates.mean((2, 3, 4))

    branching = Branching(candidates=3, go_on="best", first=1)
    made = rollout(guided(policy), SEEDS, options_for(family, branching=branching), score=score)
    plain, first, second = made.records
    assert plain.candidates is None
    for record, (candidates, t) in zip((first, second), asked, strict=True):
        assert torch.equal(record.candidates, candidates)
        best = record.scores.argmax(0)
        assert torch.equal(record.x_next, candidates[best, torch.arange(3)])
        assert torch.equal(t, made.sampler.schedule.times[record.step + 1].repeat(3))
        assert (candidates[0] - candidates[1]).abs().max() > 0
    mean = replay(guided(policy), made, first.x, first.x_next, 1).mean
    own = made.sampler.logp(first.candidates, mean, 1).gather(0, first.scores.argmax(0)[None])[0]
    torch.testing.assert_close(own, first.logp, rtol=1e-6, atol=1e-6)
    asked.clear()
    quirk = replace(branching, score_at="current", go_on="random")
    made = rollout(guided(policy), SEEDS, options_for(family, branching=quirk), score=score)
    assert torch.equal(asked[0][1], made.sampler.schedule.times[1].repeat(3))
    drawn = torch.stack(
        [(r.candidates == r.x_next).all((2, 3, 4)).long().argmax(0) for r in made.records[1:]]
    )
    assert len(drawn.unique()) > 1, "which candidate goes on is random"


def test_what_does_not_fit_is_refused(family: str, policy: Policy, run: Trajectories) -> None:
    record, options = run.records[0], options_for(family)
    with pytest.raises(ValueError, match="made at guidance 5 and is replayed at 1"):
        replay(guided(policy, 1.0), run, record.x, record.x_next, 0)
    policy.denoiser.train()
    with pytest.raises(ValueError, match="dropout is on in a replay"):
        replay(guided(policy), run, record.x, record.x_next, 0)
    assert rollout(guided(policy), SEEDS, options).records[0].logp.tolist() == record.logp.tolist()
    assert policy.denoiser.training, "a rollout leaves the mode as it was"
    policy.denoiser.eval()
    with pytest.raises(ValueError, match=r"guidance is 5, and predictions have 1"):
        rollout(guided(policy, 1.0), SEEDS, options)
    with pytest.raises(ValueError, match="a judge"):
        rollout(guided(policy), SEEDS, replace(options, branching=Branching(candidates=2)))
    with pytest.raises(ValueError, match="empty prompt is missing"):
        rollout(replace(guided(policy), uncond=None), SEEDS, options)
    with pytest.raises(ValueError, match=r"steps \[3\] are deterministic"):
        run.sampler.logp(record.x, record.x, 3)
    if family == "sd":
        with pytest.raises(ValueError, match="flow_sde is for rectified flow; take ddim"):
            rollout(guided(policy), SEEDS, replace(options, transition=FlowSde()))


@pytest.mark.slow
def test_a_window_in_front_of_the_second_order_solver(folder: Path) -> None:
    """MixGRPO Flash: noise in a window, then DPM2; without guidance, by CPS."""
    policy = policy_of("sd3", folder)
    options = RolloutOptions(
        steps=6, guidance=1.0, transition=Cps(), otherwise=Dpm2(),
        stochastic=StochasticSteps(which="sliding", count=2, every=10),
    )  # fmt: skip
    made = rollout(guided(policy, 1.0), SEEDS, options, iteration=10)
    assert [r.step for r in made.records] == [1, 2]
    with torch.no_grad():
        assert (ratios(guided(policy, 1.0), made) - 1).abs().max() <= 1e-6


# ---------------------------------------------------------------------- options


def test_options_survive_yaml(tmp_path: Path) -> None:
    options = RolloutOptions(
        transition=Cps(noise_level=0.7), otherwise=Dpm2(), stochastic=StochasticSteps(which="window", stop=5),
        branching=Branching(candidates=4, score_at="current"), recorder=Recorder(dtype="bf16", means=True),
    )  # fmt: skip
    path = tmp_path / "rollout.yaml"
    path.write_text(dump(options, {}))
    unions = {"transition": TRANSITIONS.__getitem__, "otherwise": TRANSITIONS.__getitem__}
    assert load(RolloutOptions, path, unions=unions) == options


def test_chosen_steps() -> None:
    assert StochasticSteps().chosen(5, 0) == [0, 1, 2, 3]
    assert StochasticSteps(last_step=True, first=2).chosen(5, 0) == [2, 3, 4]
    assert StochasticSteps(which="none").chosen(5, 0) == []
    sliding = StochasticSteps(which="sliding", count=4, every=25)
    assert sliding.chosen(25, 0, 24) == [0, 1, 2, 3]
    assert sliding.chosen(25, 0, 25) == [1, 2, 3, 4]
    assert sliding.chosen(25, 0, 25 * 20) == [20, 21, 22, 23]
    assert sliding.chosen(25, 0, 25 * 21) == [0, 1, 2, 3]
    window = StochasticSteps(which="window", count=2, stop=5)
    found = {tuple(window.chosen(10, seed)) for seed in range(40)}
    assert found == {(0, 1), (1, 2), (2, 3), (3, 4)}
    random = StochasticSteps(which="random", count=3, first=1)
    found = {tuple(random.chosen(6, seed)) for seed in range(60)}
    assert len(found) == 4, "3 of the steps 1 to 4"
    assert random.chosen(6, 7) == random.chosen(6, 7)
    with pytest.raises(ValueError, match="there are 3 steps to choose from"):
        StochasticSteps(which="window", count=4).chosen(4, 0)
    with pytest.raises(ValueError, match="must be at least 1"):
        StochasticSteps(count=0)
    with pytest.raises(ValueError, match="candidates is 0"):
        Branching(candidates=0)
