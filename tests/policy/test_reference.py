"""References that move, that come from elsewhere, and what a checkpoint must hold of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffalign.policy import Policy, load_policy
from diffalign.policy.export import export_policy
from diffalign.policy.lora import START, AdapterConfig, adapter_parameters
from diffalign.policy.reference import EmaReference, LoraReference, PoolReference
from tests.policy.test_policy import inputs, shake
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def lora(folder: Path, family: str = "sd3", **options: object) -> Policy:
    return load_policy(tiny_folder(family, folder), AdapterConfig(rank=2, **options))


def answer(policy: Policy, n: int = 4) -> Tensor:
    with policy.reference():
        return policy.predict(*inputs(policy, n))


def own(policy: Policy, n: int = 4) -> Tensor:
    with torch.no_grad():
        return policy.predict(*inputs(policy, n))


@pytest.mark.parametrize(
    ("family", "whole"),
    [("sd3", False), ("sd3", True), *(pytest.param("sd", w, marks=pytest.mark.slow) for w in (False, True))],
)
def test_average_starts_at_the_policy_and_follows_slowly(family: str, whole: bool, folder: Path) -> None:
    policy = load_policy(tiny_folder(family, folder), None if whole else {"rank": 2})
    assert policy.set_reference(EmaReference(decay=0.75)) == "ema"
    names = set(policy.trainable())
    start = own(policy)
    assert torch.equal(answer(policy), start), "the same weights, dtype and code path"
    before = {n: p.detach().clone() for n, p in policy.trainable().items()}
    shake(policy)
    assert torch.equal(answer(policy), start), "it moves by update() only"
    policy.opponent.update()
    assert set(policy.trainable()) == names
    name, now = next(iter(policy.trainable().items()))
    expected = 0.75 * before[name] + 0.25 * now.detach()
    torch.testing.assert_close(policy.opponent.state()[f"average/{name}"], expected)
    assert not torch.equal(answer(policy), start)
    assert not torch.equal(answer(policy), own(policy))


def test_the_base_stays_when_the_reference_follows(folder: Path) -> None:
    policy = load_policy(tiny_folder("sd3", folder))
    policy.set_reference("ema")
    policy.keep_base()
    with policy.base():
        before = policy.generate(["a red circle"], [5], steps=2)
    shake(policy)
    for _ in range(3):
        policy.opponent.update()
    with policy.base():
        assert torch.equal(policy.generate(["a red circle"], [5], steps=2), before)
    with policy.reference():
        assert not torch.equal(policy.generate(["a red circle"], [5], steps=2), before), "pictures, too"


def test_average_goes_on_from_its_state(folder: Path) -> None:
    first, second = lora(folder), lora(folder)
    for policy in (first, second):
        policy.set_reference("ema")
    shake(first)
    first.opponent.update()
    second.opponent.load({n: v.clone() for n, v in first.opponent.state().items()})
    assert torch.equal(answer(second), answer(first))


def test_pool_keeps_the_newest_checkpoints(folder: Path) -> None:
    policy = lora(folder)
    assert policy.set_reference(PoolReference(every=2, size=3, draw="latest")) == "pool"
    seen = [answer(policy)]
    for step in range(1, 9):
        shake(policy)
        policy.opponent.update()
        policy.opponent.choose(step, [])
        if step % 2 == 0:
            seen.append(own(policy))
        assert torch.equal(answer(policy), seen[-1]), "latest: the policy as it was when it joined"
    assert policy.opponent.born == [4, 6, 8]
    assert {p.requires_grad for p in adapter_parameters(policy.denoiser, START).values()} == {False}


def grown(folder: Path, draw: str) -> tuple[Policy, list[Tensor]]:
    """Policy with a pool of three, and what each member answers."""
    policy = lora(folder)
    policy.set_reference(PoolReference(every=1, size=3, draw=draw))
    answers = [own(policy, 8)]
    for _ in range(2):
        shake(policy)
        policy.opponent.update()
        answers.append(own(policy, 8))
    shake(policy)
    return policy, answers


def test_pool_draws_a_member_for_each_batch(folder: Path) -> None:
    policy, answers = grown(folder, "step")
    drawn = []
    for seed in range(20):
        policy.opponent.choose(seed, [1] * 8)
        now = answer(policy, 8)
        drawn.append(next(i for i, a in enumerate(answers) if torch.equal(a, now)))
    assert set(drawn) == {0, 1, 2}


def test_pool_draws_a_member_for_each_unit(folder: Path) -> None:
    policy, answers = grown(folder, "unit")
    units = [11, 11, 12, 12, 13, 13, 14, 14]
    policy.opponent.choose(0, units)
    now, drawn = answer(policy, 8), []
    for row in range(8):
        near = [bool(torch.allclose(a[row], now[row], rtol=1e-4, atol=1e-5)) for a in answers]
        assert sum(near) == 1
        drawn.append(near.index(True))
    assert drawn[::2] == drawn[1::2], "rows of a unit share a member"
    assert len(set(drawn)) > 1
    with pytest.raises(ValueError, match="drawn for 8 rows and is asked about 4"):
        answer(policy, 4)


@pytest.mark.slow
def test_pool_goes_on_from_its_state_and_draws_the_same(folder: Path) -> None:
    first, _ = grown(folder, "step")
    second = lora(folder)
    second.set_reference(PoolReference(every=1, size=3))
    second.opponent.load({n: v.clone() for n, v in first.opponent.state().items()})
    for seed in range(5):
        first.opponent.choose(seed, [])
        second.opponent.choose(seed, [])
        assert torch.equal(answer(second), answer(first))
    smaller = lora(folder)
    smaller.set_reference(PoolReference(every=1, size=1))
    smaller.opponent.load(first.opponent.state())
    assert smaller.opponent.born == [2]


@pytest.mark.slow
def test_a_lora_of_another_run_and_rank_is_the_reference(folder: Path, tmp_path: Path) -> None:
    former = lora(folder, alpha=8.0)
    shake(former)
    source = str(export_policy(former, tmp_path / "former"))
    policy = load_policy(tiny_folder("sd3", folder), {"rank": 3})
    names = set(policy.trainable())
    assert policy.set_reference(LoraReference(source=source)) == "lora"
    torch.testing.assert_close(answer(policy), own(former))
    assert set(policy.trainable()) == names
    torch.testing.assert_close(own(policy), own(load_policy(tiny_folder("sd3", folder))))
    with pytest.raises(FileNotFoundError, match="no LoRA"):
        policy.set_reference(LoraReference(source=str(tmp_path / "nowhere")))


def test_a_reference_can_be_set_again(folder: Path) -> None:
    policy = lora(folder)
    for kind in ("start", "ema", "pool", "off", "start"):
        assert policy.set_reference(kind) == kind
        assert torch.equal(answer(policy), own(policy))


@pytest.mark.slow
def test_who_stands_still_has_an_identity(folder: Path) -> None:
    policy = lora(folder)
    policy.set_reference("off")
    assert policy.reference_id() == policy.base_id()
    shake(policy)
    assert policy.reference_id() == policy.base_id()
    policy.set_reference("start")
    moved = policy.reference_id()
    assert moved != policy.base_id()
    assert lora(folder).set_reference("start") == "start"
    for kind in ("ema", "pool", "none"):
        policy.set_reference(kind)
        with pytest.raises(RuntimeError, match=f"reference {kind} has no fixed weights"):
            policy.reference_id()
    assert not lora(folder).opponent.moves


def test_present_identity_is_that_of_who_makes_pictures(folder: Path) -> None:
    policy = lora(folder)
    policy.set_reference("start")
    start = policy.present_id()
    shake(policy)
    assert policy.present_id() != start
    with policy.base():
        assert policy.present_id() == policy.base_id()
    with policy.reference():
        assert policy.present_id() == policy.reference_id()


def test_what_does_not_fit_is_named(folder: Path) -> None:
    whole = load_policy(tiny_folder("sd3", folder))
    for kind in ("pool", "off", LoraReference(source="x")):
        with pytest.raises(ValueError, match="needs a LoRA"):
            whole.set_reference(kind)
    policy = lora(folder)
    policy.set_reference("ema")
    state = policy.opponent.state()
    policy.set_reference("off")
    with pytest.raises(ValueError, match=r"another kind or model than this run's \(off\)"):
        policy.opponent.load(state)
    policy.set_reference("pool")
    with pytest.raises(ValueError, match=r"\(pool\)"):
        policy.opponent.load(state)
    for bad, error in ((lambda: EmaReference(decay=1.0), "decay"), (lambda: PoolReference(size=0), "size")):
        with pytest.raises(ValueError, match=error):
            bad()
