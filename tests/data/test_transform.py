"""Decoding, cropping, flipping, and the sizes that SDXL is told."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from diffalign.data.records import DataError
from diffalign.data.transform import BadImageError, Transform, View, decode


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_picture_of_the_right_size_is_only_scaled_to_plus_minus_one() -> None:
    image = noise(16, 16)
    pixels, sizes = Transform(resolution=16).apply(decode(encoded(image), "x"), View())
    expected = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert sizes.tolist() == [16, 16, 0, 0, 16, 16]


def test_transparency_is_put_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert decode(encoded(clear), "x").getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(half), "x").getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    assert decode(encoded(palette, transparency=0), "x").getpixel((0, 0)) == (255, 255, 255)


def test_exif_turns_the_picture_upright() -> None:
    image = noise(4, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = decode(encoded(image, exif=exif), "x")
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(image), -1))


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 128 * 256, dtype=np.uint16))
    assert decode(encoded(grey), "x").getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5])
def test_truncated_bytes_are_refused_by_name(format: str, keep: float) -> None:
    data = encoded(noise(64, 64), format)
    with pytest.raises(BadImageError, match="row 9") as error:
        decode(data[: int(len(data) * keep)], "row 9")
    assert "0x" not in str(error.value)


def test_random_bytes_never_raise_anything_else() -> None:
    rng = np.random.default_rng(0)
    data = encoded(noise(32, 32))
    for _ in range(60):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 5):
            broken[place] = rng.integers(256)
        with suppress(BadImageError):
            assert decode(bytes(broken), "x").mode == "RGB"


def test_crop_positions_and_sizes() -> None:
    image = noise(16, 48)
    pixels, sizes = Transform(resolution=16).apply(image, View(left=1.0))
    np.testing.assert_allclose(pixels.permute(1, 2, 0), np.asarray(image)[:, 32:] / 127.5 - 1, atol=1e-6)
    assert sizes.tolist() == [16, 48, 0, 32, 16, 16]
    _, sizes = Transform(resolution=8).apply(image, View())
    assert sizes.tolist() == [16, 48, 0, 8, 8, 8]


def test_flip_mirrors_and_the_crop_counts_in_the_mirrored_picture() -> None:
    image = noise(16, 20)
    left, _ = Transform(resolution=16).apply(image, View(left=0.0))
    right, sizes = Transform(resolution=16).apply(image, View(left=1.0, flip=True))
    torch.testing.assert_close(right.flip(2), left)
    assert sizes[3] == 4


def test_views_depend_on_content_and_seed_only() -> None:
    transform = Transform(random_crop=True, flip=True, seed=1)
    assert transform.views("a") == transform.views("a")
    assert transform.views("a") != transform.views("b")
    assert transform.views("a") != Transform(random_crop=True, flip=True, seed=2).views("a")
    plain, mirrored = transform.views("a")
    assert (plain.top, plain.left) == (mirrored.top, mirrored.left)
    assert (plain.flip, mirrored.flip) == (False, True)
    assert len({transform.key(view) for view in (*transform.views("a"), *transform.views("b"))}) == 4


def test_resolution_must_be_positive() -> None:
    with pytest.raises(DataError, match="resolution is 0"):
        Transform(resolution=0)
