"""Reference errors that are kept: found again exactly, and never where anything is different."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffalign.diffusion.corrupt import GaussianNoise, draw_seed
from diffalign.diffusion.spaces import native_error
from diffalign.diffusion.timesteps import Uniform
from diffalign.policy import Policy, load_policy
from diffalign.policy.lora import AdapterConfig
from diffalign.train.error_cache import ErrorCache, ErrorCacheError, error_context
from tests.policy.test_policy import inputs, shake
from tests.tiny import tiny_folder

CONTEXT = "0123456789abcdef" * 4
UNITS = [7, 7, 9, 9]
CONTENTS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def cache(path: Path, **options: object) -> ErrorCache:
    return ErrorCache(path, CONTEXT, **options)


def never() -> Tensor:
    raise AssertionError("the reference was asked")


def test_a_batch_is_found_in_this_run_and_in_the_next(tmp_path: Path) -> None:
    first, keys = cache(tmp_path), ErrorCache.keys(CONTENTS, UNITS)
    errors = torch.rand(4)
    assert first.lookup(keys) is None
    assert torch.equal(first.errors(keys, "cpu", lambda: errors), errors)
    errors_before, errors[0] = errors.clone(), -1.0
    assert torch.equal(first.errors(keys, "cpu", never), errors_before), "a copy is kept"
    assert (first.misses, first.hits) == (2, 1)
    assert cache(tmp_path).lookup(keys) is None, "nothing is written yet"
    first.flush()
    again = cache(tmp_path)
    assert len(again) == 4
    assert torch.equal(again.errors(keys, "cpu", never), errors_before)
    assert torch.equal(again.lookup(keys[::-1]), errors_before.flip(0)), "each row by its own key"
    again.flush()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_all_rows_or_none(tmp_path: Path) -> None:
    kept, keys = cache(tmp_path), ErrorCache.keys(CONTENTS, UNITS)
    kept.add(keys[:3], torch.rand(3))
    assert kept.lookup(keys) is None
    assert kept.lookup(keys[:3]) is not None


@pytest.mark.parametrize(
    "other",
    [
        ErrorCache.keys(["a", "b", "c", "e"], UNITS),  # another image or prompt
        ErrorCache.keys(CONTENTS, [7, 7, 8, 8]),  # another seed, epoch or sample
        ErrorCache.keys(["b", "a", "c", "d"], UNITS),  # sides swapped: other noise for each
        ErrorCache.keys([*CONTENTS, "e", "f"], [*UNITS, 1, 1])[:4],  # a batch of another size
        ErrorCache.keys(CONTENTS, UNITS, "pixel"),  # another space
    ],
)
def test_a_row_that_differs_is_not_found(other: list[bytes], tmp_path: Path) -> None:
    kept = cache(tmp_path)
    kept.add(ErrorCache.keys(CONTENTS, UNITS), torch.rand(4))
    kept.flush()
    assert cache(tmp_path).lookup(other) is None


def test_rows_are_written_behind_in_shards_that_appear_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = cache(tmp_path, shard_rows=8)
    for unit in range(3):
        kept.add(ErrorCache.keys(CONTENTS, [unit] * 4), torch.full((4,), float(unit)))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert len(cache(tmp_path)) == 8

    def full(*paths: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ErrorCacheError, match="No space left"):
        kept.flush()
    monkeypatch.undo()
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 1
    kept.flush()
    assert len(cache(tmp_path)) == 12, "what could not be written is kept for the next time"


def test_several_processes_write_into_one_folder(tmp_path: Path) -> None:
    one, two = cache(tmp_path), cache(tmp_path)
    own, others = (ErrorCache.keys(CONTENTS, [u] * 4) for u in (1, 2))
    one.add(own, torch.rand(4))
    two.add(others, torch.rand(4))
    two.add(own, one.lookup(own))
    one.flush()
    two.flush()
    both = cache(tmp_path)
    assert torch.equal(both.lookup(own), one.lookup(own))
    assert torch.equal(both.lookup(others), two.lookup(others))


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    kept, keys = cache(tmp_path), ErrorCache.keys(CONTENTS, UNITS)
    kept.add(keys, torch.tensor([1.0, float("nan"), 1.0, 1.0]))
    assert kept.lookup(keys) is None, "errors of a run that blew up are none"
    with pytest.raises(ErrorCacheError, match=r"float64.* do not fit a cache of torch\.float32"):
        kept.add(keys, torch.rand(4, dtype=torch.float64))
    exact = ErrorCache(tmp_path, "f" * 64, dtype=torch.float64)
    value = torch.rand(4, dtype=torch.float64)
    exact.add(keys, value)
    exact.flush()
    assert torch.equal(ErrorCache(tmp_path, "f" * 64, dtype=torch.float64).lookup(keys), value)
    with pytest.raises(ErrorCacheError, match="holds no errors of"):
        ErrorCache(tmp_path, "f" * 64)
    shard = next(tmp_path.rglob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:40])
    with pytest.raises(ErrorCacheError, match="delete it"):
        ErrorCache(tmp_path, "f" * 64, dtype=torch.float64)
    save_file({"keys": torch.zeros(2, 3, dtype=torch.uint8), "errors": torch.zeros(2)}, shard)
    with pytest.raises(ErrorCacheError, match="delete it"):
        ErrorCache(tmp_path, "f" * 64)


def ready(folder: Path, family: str = "sd3", **options: object) -> Policy:
    policy = load_policy(tiny_folder(family, folder), AdapterConfig(rank=2, **options))
    policy.set_reference("off")
    return policy


def settings(**changes: object) -> dict[str, object]:
    return {"corruptor": repr(GaussianNoise()), "timesteps": repr(Uniform()), "latents": "sample", **changes}


def scaled(policy: Policy) -> None:
    policy.pipeline.vae.register_to_config(scaling_factor=0.3)


def predicts_v(policy: Policy) -> None:
    from dataclasses import replace

    policy.process = replace(policy.process, prediction="v")


def halved(policy: Policy) -> None:
    policy.to(dtype=torch.bfloat16)


def compared_with_itself(policy: Policy) -> None:
    shake(policy)
    policy.set_reference("start")


def other_base(policy: Policy) -> None:
    policy.denoiser.pos_embed.proj.weight.data += 1
    policy._ids.clear()


@pytest.mark.parametrize("change", [scaled, predicts_v, halved, compared_with_itself, other_base])
def test_another_reference_or_arithmetic_is_another_context(
    change: Callable[[Policy], None], folder: Path
) -> None:
    policy = ready(folder)
    before = error_context(policy, settings())
    change(policy)
    assert error_context(policy, settings()) != before


def test_the_trained_weights_do_not_count_but_the_settings_do(folder: Path) -> None:
    policy = ready(folder)
    before = error_context(policy, settings())
    shake(policy)
    assert error_context(policy, settings()) == before
    assert error_context(ready(folder, seed=3), settings()) == before
    low = error_context(policy, settings(timesteps=repr(Uniform(low=0.5))))
    assert len({before, low, error_context(policy, settings(latents="mode"))}) == 3
    for kind in ("ema", "pool", "none"):
        policy.set_reference(kind)
        with pytest.raises(ErrorCacheError, match=f"errors of reference '{kind}' cannot be kept"):
            error_context(policy, settings())


def test_kept_errors_equal_those_of_the_reference(folder: Path, tmp_path: Path) -> None:
    first, again = ready(folder), ready(folder)
    shake(again)
    x0, _, cond, sizes = inputs(first)
    units = [draw_seed(0, 0, s) for s in (1, 1, 2, 2)]
    keys = ErrorCache.keys(CONTENTS, units)

    def compute(policy: Policy) -> Tensor:
        noisy = GaussianNoise()(x0, units, policy.process, Uniform())
        with policy.reference():
            return native_error(policy.predict(noisy.x_t, noisy.t, cond, sizes), noisy.target)

    kept = ErrorCache(tmp_path, error_context(first, settings()))
    expected = kept.errors(keys, "cpu", lambda: compute(first))
    kept.flush()
    other = ErrorCache(tmp_path, error_context(again, settings()))
    assert torch.equal(other.errors(keys, "cpu", never), compute(again))
    assert torch.equal(expected, compute(again))
