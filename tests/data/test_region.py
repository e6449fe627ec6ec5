"""Regions follow crop and flip of their image, end at latent size, and those cropped away are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffalign.data import (
    BytesImage,
    CachedSet,
    CacheOptions,
    DataError,
    Loader,
    LoaderOptions,
    Record,
    Region,
    Transform,
    build_cache,
)
from diffalign.data.transform import View, map_to_latent
from tests.data.data_helpers import FakeEncoder, pair, picture

Build = Callable[..., CachedSet]
LEFT = Region(rectangle=(0.0, 0.0, 0.25, 1.0))


@pytest.mark.parametrize("size", [(40, 24), (24, 40), (16, 16), (64, 64)])
@pytest.mark.parametrize("view", [View(), View(top=0.0, left=1.0, flip=True), View(top=1.0, left=0.25)])
def test_weights_go_where_the_pixels_go(size: tuple[int, int], view: View) -> None:
    """The picture itself is the weight map: both ways to the latent give the same means."""
    smooth = np.random.default_rng(0).integers(0, 256, (3, 4), dtype=np.uint8)
    grey = Image.fromarray(smooth).resize(size, Image.Resampling.BICUBIC)
    pixels, sizes = Transform(resolution=16).apply(grey.convert("RGB"), view)
    latent = torch.nn.functional.avg_pool2d(pixels[None, :1] / 2 + 0.5, 4)[0]
    found = map_to_latent(np.asarray(grey, dtype=np.float32) / 255, sizes, view.flip, (4, 4))
    assert found.shape == (1, 4, 4)
    torch.testing.assert_close(found, latent, atol=0.02, rtol=0)  # two resampling filters


def test_rectangles_masks_and_grids() -> None:
    np.testing.assert_allclose(Region(rectangle=(0.5, 0, 1, 0.375), outside=0.5).pixels(4, 2),
                               [[0.5, 1], [0.5, 0.75], [0.5, 0.5], [0.5, 0.5]])  # fmt: skip
    grey = BytesImage.from_pil(Image.fromarray(np.array([[255, 0]], dtype=np.uint8)))
    np.testing.assert_array_equal(Region(mask=grey, outside=0.25).pixels(2, 4), [[1, 1, 0.25, 0.25]] * 2)
    np.testing.assert_array_equal(Region(weights=((1.0, 3.0),)).pixels(2, 4), [[1, 1, 3, 3]] * 2)


def loader(data: CachedSet, encoder: FakeEncoder, batch: int) -> Loader:
    return Loader(data, encoder.collate_prompts, LoaderOptions(batch=batch))


def test_batches_have_weights_beside_their_latents(cached: Build, encoder: FakeEncoder) -> None:
    marked = replace(pair(0, 0.0), regions=(LEFT, None))
    batch = next(iter(loader(cached([marked, pair(1)]), encoder, 2)))
    assert batch.region is not None
    assert batch.region.shape == (4, 1, 4, 4)
    rows = batch.region[batch.sample == 0]
    assert (rows[0] == 1).all()  # the second image won and comes first; it has no region
    assert torch.equal(rows[1, 0], torch.tensor([1.0, 0, 0, 0]).expand(4, 4))
    assert (batch.region[batch.sample == 1] == 1).all()
    assert next(iter(loader(cached([pair(1)]), encoder, 1))).region is None


def test_a_mirrored_view_mirrors_its_region(cached: Build, encoder: FakeEncoder) -> None:
    source = loader(cached([replace(pair(0), regions=(LEFT, LEFT))], flip=True), encoder, 1)
    found = {tuple(b.region[0, 0, 0].tolist()) for _, b in zip(range(12), source, strict=False)}
    assert found == {(1, 0, 0, 0), (0, 0, 0, 1)}


def test_a_region_that_is_cropped_away_leaves_its_pair_out(cached: Build) -> None:
    wide = Record(
        prompt="x", images=(picture(0, (16, 64)), picture(1, (16, 64))), kind="pair", values=(1.0, 0.0),
        regions=(LEFT, None), source="wide pair",
    )  # fmt: skip
    data = cached([pair(1), wide])
    assert [unit.sample for unit in data.units] == [0]
    assert data.report.outside == ["wide pair"]
    assert "1 comparisons whose region is cropped away" in data.report.summary()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (BytesImage(b"x", "m.png"), "m.png is no whole image"),
        (picture(0, (8, 16)), "16 x 8, its image 16 x 16"),
    ],
)
def test_masks_that_do_not_fit_are_named(cached: Build, mask: BytesImage, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        cached([replace(pair(0), regions=(Region(mask=mask), None))])
    assert "pair 0" in str(error.value)


def test_likes_have_regions_of_their_own_and_a_second_build_makes_none(
    encoder: FakeEncoder, tmp_path: Path
) -> None:
    likes = Record(
        prompt="x", images=(picture(0), picture(1)), kind="labels", values=(1.0, 0.0), regions=(None, LEFT)
    )
    for _ in range(2):
        data = build_cache(
            [likes], encoder, tmp_path, transform=Transform(resolution=16), options=CacheOptions()
        )
        assert [unit.regions is None for unit in data.units] == [True, False]
    batch = next(iter(loader(data, encoder, 2)))
    assert batch.region is not None
    assert batch.region.mean((1, 2, 3)).sort().values.tolist() == [0.25, 1.0]
