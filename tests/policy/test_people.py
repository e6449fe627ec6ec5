"""People in a policy: at first nothing changes, then the prediction does, and the reference's never."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from diffalign.personalize.encoders import make_options
from diffalign.policy import Policy, load_policy
from diffalign.policy.identity import weights_digest
from tests.policy.test_policy import inputs
from tests.tiny import tiny_folder

LORA = {"rank": 2, "alpha": 4}
TABLE = make_options("table", {"tokens": 4, "width": 24})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def with_people(family: str, folder: Path, only: bool = False) -> Policy:
    policy = load_policy(tiny_folder(family, folder), LORA)
    policy.add_users(TABLE, people=2, only=only)
    policy.set_reference()
    return policy


def somebody(rows: int = 4) -> dict[str, torch.Tensor]:
    tokens = torch.randn(rows // 2, 4, 24, generator=torch.Generator().manual_seed(7))
    return {"user_tokens": tokens, "user_scale": torch.ones(rows)}


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_people_change_the_prediction_once_they_are_trained_and_the_reference_never(
    family: str, folder: Path
) -> None:
    policy = with_people(family, folder)
    assert policy.users is not None
    x, t, cond, sizes = inputs(policy)
    own = cond | somebody()
    before = policy.predict(x, t, cond, sizes)
    assert torch.equal(policy.predict(x, t, own, sizes), before)
    with torch.no_grad():
        for keys in policy.users.layers.values():
            for parameter in keys.v.parameters():
                parameter.normal_()
    assert not torch.equal(policy.predict(x, t, own, sizes), before)
    with policy.reference():
        assert torch.equal(policy.predict(x, t, own, sizes), policy.predict(x, t, cond, sizes))
        assert torch.equal(policy.predict(x, t, own, sizes), before)
    with policy.base():
        assert torch.equal(policy.predict(x, t, own, sizes), before)


@pytest.mark.parametrize("kind", ["off", "start", "pool"])
def test_encoder_and_layers_are_trained_once_each_beside_the_lora(kind: str, folder: Path) -> None:
    policy = with_people("sd", folder)
    assert policy.users is not None
    policy.set_reference(kind)  # type: ignore[arg-type]
    names = policy.trainable()
    ids = [id(p) for p in names.values()]
    assert len(ids) == len(set(ids))
    assert {id(p) for p in policy.users.parameters()} < set(ids)
    assert sum("lora_" in n for n in names) == len(ids) - len(policy.users.parameters())


def test_the_branch_alone_leaves_the_lora_frozen(folder: Path) -> None:
    policy = with_people("sd", folder, only=True)
    assert policy.users is not None
    assert {id(p) for p in policy.trainable().values()} == {id(p) for p in policy.users.parameters()}


@pytest.mark.slow
def test_digests_are_those_of_the_model_without_people(folder: Path) -> None:
    plain = load_policy(tiny_folder("sd", folder), LORA)
    policy = with_people("sd", folder)
    assert policy.base_id() == plain.base_id()
    assert policy.reference_id() == weights_digest([plain.denoiser])


def test_what_cannot_take_people_is_refused(folder: Path) -> None:
    whole = load_policy(tiny_folder("sd", folder), None)
    with pytest.raises(ValueError, match="beside a LoRA"):
        whole.add_users(TABLE)
    plain = load_policy(tiny_folder("sd", folder), LORA)
    x, t, cond, sizes = inputs(plain)
    with pytest.raises(ValueError, match="takes no people"):
        plain.predict(x, t, cond | somebody(), sizes)
    plain.denoiser.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=True))  # type: ignore[operator]
    with pytest.raises(ValueError, match="use_reentrant=False"):
        plain.add_users(TABLE)
    with pytest.raises(ValueError, match="attached already"):
        with_people("sd", folder).add_users(TABLE)
