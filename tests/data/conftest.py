"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diffalign.data import CachedSet, CacheOptions, Record, Transform, build_cache
from tests.data.data_helpers import FakeEncoder


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def cached(tmp_path: Path, encoder: FakeEncoder) -> Callable[..., CachedSet]:
    """Build a cache of records with the fake encoder."""

    def build(records: Sequence[Record], **options: bool) -> CachedSet:
        transform = Transform(resolution=16, **options)
        return build_cache(
            records, encoder, tmp_path / "cache", transform=transform, options=CacheOptions(batch=3)
        )

    return build
