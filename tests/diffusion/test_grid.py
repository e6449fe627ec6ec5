"""Any pair objective in any space with any corruptor, on UNet eps, UNet v and flow DiT: one step each.

Each combination must be finite, and its gradient must agree with float64 finite differences in one random
tensor of weights. The VAE is raised to float64 here, which pipelines do not do by themselves; text encoders
stay in float32, for their output is a constant.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted, corruptors
from diffalign.diffusion.spaces import BoundSpace, native_error, spaces
from diffalign.diffusion.timesteps import Uniform
from diffalign.objectives import Denoised, Objective, Predictions, build, names, objectives
from diffalign.policy import Policy, load_policy
from tests.tiny import tiny_folder

ASKED = {"soft", "margin", "score", "tensors"}
"""What the grid can fill of an objective's needs."""


def fits(name: str) -> bool:
    """Whether the grid can build a pair objective and fill what it needs."""
    cls = objectives.get(name)
    made = all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls))  # type: ignore[arg-type]
    return cls.data == "pairs" and set(cls.needs) <= ASKED and made


PAIR = [name for name in names() if fits(name)]
CORRUPTORS = ["shared_noise", "independent_noise", "ddim_inversion", "renoise_inversion"]
FEATURES = {"sd": "unet_features", "sd-v": "unet_features", "sd3": "dit_features"}
QUICK = {
    ("sd", "unet_features", "ddim_inversion"),
    ("sd3", "pixel", "renoise_inversion"),
}


def combinations() -> list[Any]:
    found = []
    for family, features in FEATURES.items():
        for space, corruptor in product(["native", "pixel", "decoder_features", features], CORRUPTORS):
            marks = () if (family, space, corruptor) in QUICK else pytest.mark.slow
            found.append(pytest.param(family, space, corruptor, marks=marks))
    return found


@cache
def policy_of(family: str, folder: Path) -> Policy:
    policy = load_policy(tiny_folder(family, folder), {"rank": 2})
    policy.set_reference()
    policy.to(dtype=torch.float64)
    for parameter in policy.trainable().values():
        parameter.data = parameter.data.double()
    policy.pipeline.vae.double()
    generator = torch.Generator().manual_seed(1)
    for parameter in policy.trainable().values():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


class Step:
    """One step of training, as the trainer makes it; ``noisy`` is fixed, as in a step."""

    def __init__(self, policy: Policy, space: str, corruptor: str) -> None:
        self.policy, self.space = policy, spaces.get(space)().bind(policy)
        generator = torch.Generator().manual_seed(5)
        self.x0 = torch.randn(4, 8, 8, 8, dtype=torch.float64, generator=generator)
        prompts = ["a red circle", "a red circle", "a blue square", "a blue square"]
        self.cond = policy.collate_prompts(policy.encode_prompts(prompts))
        options = {} if "noise" in corruptor and "renoise" not in corruptor else {"steps": 3}
        chosen = corruptors.get(corruptor)(**options)
        if corruptor == "independent_noise":
            chosen = corruptors.get(corruptor)(name="independent_noise")
        self.noisy = chosen(self.x0, [7, 7, 9, 9], policy.process, Uniform(low=0.2, high=0.4), self.predict)
        with policy.reference():
            self.ref_pred = self.predict(self.noisy.x_t, self.noisy.t)
            self.ref_error = self.space.error(self.ref_pred, self.noisy, self.cond)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.policy.predict(x, t, self.cond)

    def losses(self, wanted: list[Objective]) -> Tensor:
        """One loss per objective, all of the same pass."""
        pred = self.predict(self.noisy.x_t, self.noisy.t)
        error = self.space.error(pred, self.noisy, self.cond)
        return torch.stack([self.loss(objective, error, pred) for objective in wanted])

    def loss(self, objective: Objective, error: Tensor, pred: Tensor) -> Tensor:
        batch = Denoised(
            error=error, ref_error=self.ref_error if objective.needs_reference else None,
            group=torch.tensor([0, 0, 1, 1]), role=torch.tensor([1, -1, -1, 1]), t=self.noisy.t,
            soft=torch.tensor([0.9, 0.1, 0.3, 0.7], dtype=torch.float64),
            score=torch.tensor([0.8, 0.2, 0.1, 0.9], dtype=torch.float64),
            margin=torch.full((4,), 0.1, dtype=torch.float64),
            weight=torch.ones(4, dtype=torch.float64), tensors=self.predictions(pred),
        )  # fmt: skip
        total: Tensor = objective.loss(batch, state={})[0].sum()
        return total

    def predictions(self, pred: Tensor) -> Predictions:
        return Predictions(
            pred=pred, ref_pred=self.ref_pred, target=self.noisy.target, x_t=self.noisy.x_t, x0=self.x0
        )


@pytest.mark.parametrize(("family", "space", "corruptor"), combinations())
def test_one_step(family: str, space: str, corruptor: str, folder: Path) -> None:
    policy = policy_of(family, folder)
    step = Step(policy, space, corruptor)
    assert step.noisy.x_t.dtype == torch.float64
    weights = list(policy.trainable().values())
    seed = sum(map(ord, family + space + corruptor))
    place = int(torch.randint(len(weights), (), generator=torch.Generator().manual_seed(seed)))
    wanted = [build(name) for name in (["dpo"] if (family, space, corruptor) in QUICK else PAIR)]
    gradients = []
    for loss in (losses := step.losses(wanted)):
        own = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
        assert all(g.isfinite().all() for g in own)
        assert max(float(g.abs().max()) for g in own) > 0
        gradients.append(own[place].flatten())
    at = int(gradients[0].abs().argmax())
    slopes = differences(step, wanted, weights[place], at)
    for objective, gradient, slope, loss in zip(wanted, gradients, slopes, losses, strict=True):
        if not objective.coupled and "tensors" not in objective.needs:  # those hold parts of theirs constant
            rounding = 1e-9 * (1 + abs(loss.item()))
            assert slope.item() == pytest.approx(gradient[at].item(), rel=1e-4, abs=rounding), objective


def differences(step: Step, wanted: list[Objective], weight: Tensor, at: int) -> Tensor:
    """Derivative of every objective's loss by one entry of a tensor of weights, by a five-point stencil.

    h is not smaller because feature spaces divide by small steps, which shows rounding; two points alone
    would then show the curvature of the steepest objectives.
    """
    values, h = weight.data.view(-1), 1e-4
    before, total = values[at].item(), torch.zeros(len(wanted), dtype=torch.float64)
    with torch.no_grad():
        for place, factor in ((-2, 1), (-1, -8), (1, 8), (2, -1)):
            values[at] = before + place * h
            total += factor * step.losses(wanted)
        values[at] = before
    return total / (12 * h)


def test_native_space_is_todays_error(folder: Path) -> None:
    step = Step(policy_of("sd", folder), "native", "shared_noise")
    torch.testing.assert_close(step.ref_error, native_error(step.ref_pred, step.noisy.target), rtol=0, atol=0)


def test_all_parts_are_found() -> None:
    assert {"native", "pixel", "decoder_features", *FEATURES.values()} <= set(spaces.names())
    assert set(CORRUPTORS) <= set(corruptors.names())
    for name in spaces.names():
        assert spaces.get(name)().name == name  # type: ignore[attr-defined]
    bound: BoundSpace = spaces.get("native")().bind(policy=None)  # type: ignore[arg-type]
    noisy = Corrupted(x_t=torch.zeros(1, 1), t=torch.zeros(1), target=torch.zeros(1, 1))
    assert bound.error(torch.ones(1, 1), noisy, {}).item() == 1
