"""Transforms of pictures: published pixels, distance of tensors to Pillow, gradients, shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from scorers.pickscore import PickScore
from scorers.preprocess import PadPreprocess, Preprocess, SquashPreprocess, Transform, pil_resize
from tests.scorers.conftest import GOLDEN
from tests.scorers.test_losses import golden

MEAN, STD = (torch.tensor(v)[:, None, None] for v in (Preprocess(size=1).mean, Preprocess(size=1).std))


def natural(side: int, seed: int = 0) -> Tensor:
    """(1, 3, side, side) picture in bytes with the 1/f spectrum of photographs, in [0, 1]."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequency[0, 0] = 1
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, side, side))) / frequency).real
    noise = (noise - noise.min()) / (noise.max() - noise.min())
    return torch.from_numpy((noise * 255).round() / 255).float()[None]


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize(("antialias", "key"), [("modern", "hps_val"), ("reference-2023", "hps_val_noaa")])
def test_padding_of_the_published_code(k: int, antialias: str, key: str) -> None:
    data = golden("hpsv2_preprocess")
    pad = PadPreprocess(size=56, antialias=antialias)  # type: ignore[arg-type]
    torch.testing.assert_close(pad(data[f"img{k}"][None] / 255)[0], data[f"{key}{k}"], rtol=0, atol=1e-5)


def test_padding_of_a_long_side_that_is_right_already() -> None:
    x = torch.rand(1, 3, 20, 32)
    found = PadPreprocess(size=32).fit(x)
    assert torch.equal(found[..., 6:26, :], x)
    assert float(found[..., :6, :].abs().max()) == 0
    assert torch.equal(PadPreprocess(size=32).fit(found), found)
    assert PadPreprocess(size=32).fit(torch.rand(1, 3, 1, 500)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("side", [256, 512])
def test_distance_to_pillow_is_that_of_the_table(side: int) -> None:
    x = natural(side)
    pillow = pil_resize(x, 224, 224)
    gap = 255 * (Preprocess(size=224).fit(x) - pillow).abs()
    rounded = 255 * ((Preprocess(size=224).fit(x) * 255).round() / 255 - pillow).abs()
    rows = json.loads((GOLDEN / "preprocess_divergence.json").read_text())["rows"]
    for found, variant in ((gap, "tensor_float_AA"), (rounded, "tensor_float_AA_clamp_round")):
        (row,) = [r for r in rows if r["size"] == f"{side}x{side}" and r["variant"] == variant]
        assert float(found.mean()) <= row["mean_abs_255"] + 0.005  # another picture of the kind
        assert float(found.max()) <= row["max_abs_255"]


def test_exact_mode_is_pillow() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    left = (44 - 32) // 2  # 70 * 32 / 50 = 44.8
    resized = Image.fromarray(pixels).resize((44, 32), Image.Resampling.BICUBIC)
    theirs = torch.from_numpy(np.array(resized.crop((left, 0, left + 32, 32)))).permute(2, 0, 1) / 255
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    assert torch.equal(Preprocess(size=32, mode="exact").fit(x)[0], theirs)
    squashed = np.array(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC))
    found = SquashPreprocess(size=32, mode="exact")(x)[0]
    torch.testing.assert_close(found, torch.from_numpy(squashed).permute(2, 0, 1) / 127.5 - 1)


@pytest.mark.parametrize("kind", [Preprocess, PadPreprocess, SquashPreprocess])
def test_exact_mode_has_the_gradient_of_the_smooth_one(kind: type[Transform]) -> None:
    grads, values = [], []
    for mode in ("exact", "tensor"):
        x = natural(64)[..., :50].clone().requires_grad_()
        fitted = kind(size=32, mode=mode)(x)  # type: ignore[arg-type]
        (fitted * torch.arange(32.0)).sum().backward()
        grads.append(x.grad)
        values.append(fitted.detach())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-4)
    assert float((values[0] - values[1]).abs().max()) < 0.1
    with torch.no_grad():
        torch.testing.assert_close(kind(size=32, mode="exact")(natural(64)[..., :50]), values[0])


def test_crops_of_both_libraries() -> None:
    x = torch.arange(35.0).expand(1, 3, 32, 35) / 35
    assert torch.equal(Preprocess(size=32).fit(x), x[..., 1:33])
    assert torch.equal(Preprocess(size=32, crop="round").fit(x), x[..., 2:34])


def test_options_are_checked_and_recorded(scorer: PickScore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'tensor' or 'exact', not 'pil'"):
        Preprocess(size=32, mode="pil")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1 pixel"):
        PadPreprocess(size=0)
    x = natural(48)
    smooth = scorer(x, "a cat")
    exact = scorer.with_preprocess("exact")(x, "a cat")
    assert smooth.meta["preprocess"] == "preprocess-32-tensor"
    assert exact.meta["preprocess"] == "preprocess-32-exact"
    assert float(smooth.score) != float(exact.score)
    torch.testing.assert_close(smooth.score, exact.score, rtol=0, atol=0.1)
    assert PadPreprocess(size=4, antialias="reference-2023").id == "pad-4-reference-2023"
