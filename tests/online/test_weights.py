"""Parameter sets beside the trained one: copies, courses, what is put in for a while, checkpoints."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffalign.objectives.blend import Blend
from diffalign.online.blocks import WeightsConfig
from diffalign.online.weights import ParameterSets


def sets(**options: Any) -> tuple[ParameterSets, nn.Parameter]:
    """One trained weight, which starts at 0."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    blends = {k: Blend(**v) if isinstance(v, dict) else v for k, v in options.items()}
    return ParameterSets({"w": weight}, WeightsConfig(**blends)), weight


def learn(own: ParameterSets, weight: nn.Parameter, value: float, iteration: int) -> None:
    """An iteration at whose end the weight is ``value``."""
    own.begin()
    with torch.no_grad():
        weight.fill_(value)
    own.updated()
    own.end(iteration)


def inside(context: Any, weight: nn.Parameter) -> float:
    with context:
        return float(weight.detach())


def test_copies_are_of_the_start_of_the_iteration() -> None:
    own, weight = sets()
    for i, value in enumerate([1.0, 2.0, 3.0]):
        learn(own, weight, value, i)
    assert inside(own.of_old(), weight) == 2.0
    assert inside(own.of_sampling(), weight) == 3.0
    own.begin()
    assert inside(own.of_old(), weight) == 3.0
    assert inside(own.holding(own.previous), weight) == 2.0
    assert float(weight.detach()) == 3.0


def test_an_old_policy_follows_by_its_course() -> None:
    own, weight = sets(old={"first": 0.5, "rate": 0.25, "most": 0.75})
    wanted = 0.0
    for i, value in enumerate([1.0, 2.0, 3.0]):
        learn(own, weight, value, i)
        d = min(0.5 + 0.25 * i, 0.75)
        wanted = d * wanted + (1 - d) * value
        assert inside(own.of_old(), weight) == pytest.approx(wanted)
    own.begin()
    assert inside(own.of_old(), weight) == pytest.approx(wanted)


def test_the_iteration_before_is_known_whatever_the_course() -> None:
    own, weight = sets(old="crd_old")
    for i, value in enumerate([1.0, 2.0, 3.0]):
        learn(own, weight, value, i)
    own.begin()
    assert inside(own.holding(own.previous), weight) == 2.0


@pytest.mark.parametrize(
    ("sampling", "wanted"), [("policy", 1.0), ("old", 0.75), ("crd_half", 1.0), ({"first": 0.9}, 0.1)]
)
def test_those_who_made_the_pictures_are_known(sampling: Any, wanted: float) -> None:
    """Also once the policy has moved on."""
    own, weight = sets(old={"first": 0.25}, sampling=sampling)
    learn(own, weight, 1.0, 0)
    own.begin()
    assert inside(own.of_sampling(), weight) == pytest.approx(wanted)
    with torch.no_grad():
        weight.fill_(7.0)
    assert inside(own.of_behaviour(), weight) == pytest.approx(wanted)


def test_weights_are_put_back_after_an_exception() -> None:
    own, weight = sets()
    learn(own, weight, 1.0, 0)

    def fails() -> None:
        with own.of_old():
            assert float(weight.detach()) == 0.0
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert float(weight.detach()) == 1.0


def test_the_anchor_is_a_running_average() -> None:
    own, weight = sets(anchor=0.3)
    learn(own, weight, 1.0, 0)
    first = 1 - 2 / 11  # decay min(0.3, (1 + n) / (10 + n)) at n = 1
    assert inside(own.of_anchor(), weight) == pytest.approx(first)
    learn(own, weight, 1.0, 1)
    assert inside(own.of_anchor(), weight) == pytest.approx(first * 0.25 + 0.75)


def test_a_checkpoint_holds_all_sets() -> None:
    options = {"old": "crd_old", "sampling": {"first": 0.5}}
    own, weight = sets(**options)
    for i, value in enumerate([1.0, 2.0]):
        learn(own, weight, value, i)
    state = {k: v.clone() for k, v in own.state().items()}
    other, twin = sets(**options)
    with torch.no_grad():
        twin.fill_(2.0)
    other.load(state)
    for one in (own, other):
        one.begin()
    learn(own, weight, 5.0, 2), learn(other, twin, 5.0, 2)
    for name in ("of_old", "of_sampling", "of_anchor", "of_behaviour"):
        assert inside(getattr(own, name)(), weight) == inside(getattr(other, name)(), twin)


def test_only_what_is_asked_for_is_kept() -> None:
    weight = nn.Parameter(torch.zeros(1))
    own = ParameterSets({"w": weight}, WeightsConfig(), remember=False, anchored=False)
    learn(own, weight, 1.0, 0)
    assert own.state() == {}
    own.load({})
    own.begin()
    assert own.old is own.behaviour is own.previous is own.sampling
    with pytest.raises(RuntimeError, match="keep no running average"):
        own.of_anchor()


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_lora_and_whole_networks_alike(policies: Any, whole: bool) -> None:
    policy = policies("sd")
    parameters = policy.trainable() if not whole else dict(policy.pipeline.unet.named_parameters())
    own = ParameterSets(parameters, WeightsConfig())
    x, t = torch.ones(1, 8, 8, 8), torch.tensor([500])
    cond = policy.collate_prompts(policy.encode_prompts(["a red circle"]))

    def predicted() -> Tensor:
        with torch.no_grad():
            return policy.predict(x, t, cond)

    before = predicted()
    own.begin()
    name = next(k for k in reversed(list(parameters)) if "lora_B" in k or (whole and k == "conv_in.bias"))
    kept = parameters[name].detach().clone()
    with torch.no_grad():
        parameters[name] += 1.0
    moved = predicted()
    assert not torch.equal(before, moved)
    with own.of_old():
        assert torch.equal(predicted(), before)
    assert torch.equal(predicted(), moved)
    with torch.no_grad():
        parameters[name].copy_(kept)
