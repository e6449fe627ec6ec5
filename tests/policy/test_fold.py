"""LoRAs folded in for sampling: the same prediction, and weights that come back as they were."""

from __future__ import annotations

import pytest
import torch

from diffalign.policy import Policy, load_policy
from diffalign.policy.export import export_policy
from diffalign.policy.fold import folded
from diffalign.policy.lora import tuner_layers
from tests.policy.test_policy import inputs, shake
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Two LoRAs of different ranks, both active, and both with an effect."""
    folder = tmp_path_factory.mktemp("fold")
    first = load_policy(tiny_folder("sd", folder), {"rank": 2, "alpha": 8})
    shake(first)
    export_policy(first, folder / "first")
    second = load_policy(tiny_folder("sd", folder), {"rank": 4, "frozen": (str(folder / "first"),)})
    shake(second)
    return second


def test_the_prediction_is_the_same_and_the_weights_come_back(policy: Policy) -> None:
    given = inputs(policy)
    before = {k: (v.data_ptr(), v.clone()) for k, v in policy.denoiser.state_dict().items()}
    apart = policy.predict(*given)
    with folded(policy.denoiser):
        assert all(not layer.active_adapters for layer in tuner_layers(policy.denoiser))
        together = policy.predict(*given)
    with policy.base():
        assert not torch.allclose(policy.predict(*given), apart)
    torch.testing.assert_close(together, apart)
    after = policy.denoiser.state_dict()
    assert all(
        after[k].data_ptr() == pointer and torch.equal(after[k], v) for k, (pointer, v) in before.items()
    )
    torch.testing.assert_close(policy.predict(*given), apart, rtol=0, atol=0)


def test_it_is_undone_after_an_error(policy: Policy) -> None:
    given = inputs(policy)
    apart = policy.predict(*given)
    with pytest.raises(RuntimeError, match="stopped"), folded(policy.denoiser):
        raise RuntimeError("stopped")
    torch.testing.assert_close(policy.predict(*given), apart, rtol=0, atol=0)


def test_sampling_folds_and_the_base_stays_the_base(policy: Policy) -> None:
    seen = []
    first = tuner_layers(policy.denoiser)[0]
    hook = first.register_forward_hook(
        lambda layer, *_: seen.append((tuple(layer.active_adapters), layer.base_layer.weight.sum()))
    )
    try:
        policy.generate(["a circle"], [0], steps=1)
        with policy.base():
            policy.generate(["a circle"], [0], steps=1)
    finally:
        hook.remove()
    assert seen[0][0] == ()
    assert seen[-1][0] == ()
    assert seen[0][1] != seen[-1][1]  # the base has the first stage folded in, not what is trained


def test_half_precision_keeps_the_update_apart(policy: Policy) -> None:
    weight = tuner_layers(policy.denoiser)[0].base_layer.weight
    full = weight.data
    weight.data = full.to(torch.bfloat16)
    try:
        with folded(policy.denoiser):
            assert tuner_layers(policy.denoiser)[0].active_adapters
            assert not tuner_layers(policy.denoiser)[1].active_adapters
    finally:
        weight.data = full
