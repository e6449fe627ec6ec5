"""Qwen2-VL's pictures: smart resize and patches against the published code and the image processor."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from scorers.qwen import QwenPixels, smart_resize
from tests.scorers.conftest import GOLDEN
from tests.scorers.test_losses import golden


def test_smart_resize() -> None:
    cases = json.loads((GOLDEN / "qwen_smart_resize.json").read_text())
    found = [QwenPixels().sides(case["h"], case["w"]) for case in cases]
    assert found == [tuple(case["out"]) for case in cases]


def test_smart_resize_leaves_what_lies_between_the_limits() -> None:
    assert smart_resize(100, 57, factor=28, min_pixels=1, max_pixels=10**6) == (112, 56)
    assert smart_resize(5, 5, factor=28, min_pixels=1, max_pixels=10**6) == (28, 28)
    with pytest.raises(ValueError, match="1 x 201 pixels"):
        smart_resize(1, 201, factor=28, min_pixels=1, max_pixels=10**6)


def test_patches_and_gradient_of_the_published_code() -> None:
    data = golden("qwen2vl_patchify")
    image = data["image_0_255"].clone().requires_grad_()
    transform = QwenPixels(min_pixels=28 * 28, max_pixels=10**6)
    patches, grid = transform.patches(image[None] / 255)
    torch.testing.assert_close(patches, data["patches"], rtol=1e-5, atol=1e-5)
    assert grid.tolist() == [data["grid_thw"].tolist()]
    patches.sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(image.grad, data["grad"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 96), (120, 80), (40, 100)])
def test_exact_is_the_image_processor_and_tensor_is_close(size: tuple[int, int]) -> None:
    from transformers import Qwen2VLImageProcessor

    coarse = torch.rand(1, 3, size[0] // 8, size[1] // 8, generator=torch.manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    pixels = (smooth * 255).round().byte()
    transform = QwenPixels(size=84, mode="exact")
    resized = Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).resize(
        transform.sides(*size)[::-1], Image.Resampling.BICUBIC
    )
    theirs = Qwen2VLImageProcessor(min_pixels=784, max_pixels=10**6)(images=[resized], return_tensors="pt")
    ours, grid = transform.patches(pixels.float() / 255)
    assert torch.equal(grid, theirs["image_grid_thw"])
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-5)
    near = QwenPixels(size=84).patches(pixels.float() / 255)[0]
    gap = (near - ours).abs() * 0.27 * 255  # in steps of an 8-bit picture
    assert gap.mean() < 0.5
    assert gap.max() < 3


def test_rows_are_grouped_by_picture() -> None:
    x = torch.rand(2, 3, 60, 80)
    transform = QwenPixels(size=56)
    both, one = transform.patches(x)[0], transform.patches(x[1:])[0]
    torch.testing.assert_close(both[len(one) :], one)
    assert len(one) == 4 * transform.tokens(60, 80)


def test_exact_has_the_gradient_of_the_smooth_resize() -> None:
    x = torch.rand(1, 3, 40, 60, requires_grad=True)
    transform = QwenPixels(size=56, mode="exact")
    (exact,) = torch.autograd.grad(transform(x).sum(), x)
    assert float(exact.abs().sum()) > 0
    assert QwenPixels(size=56).id == "qwen-3136-3136-tensor"
