"""Sizes as JPEG against DDPO's own, and what must follow from them."""

from __future__ import annotations

import json

import numpy as np
import PIL
import pytest
import torch
from PIL import features

import scorers
from scorers.jpeg import Jpeg
from tests.scorers.conftest import GOLDEN


def test_golden_kilobytes() -> None:
    data, meta = np.load(GOLDEN / "jpeg.npz"), json.loads((GOLDEN / "jpeg_meta.json").read_text())
    pictures = torch.tensor(data["images"])
    same = (PIL.__version__, features.version("jpg")) == (meta["pillow"], meta["libjpeg"])
    tolerance = 1e-6 if same else 0.03  # bytes depend on the encoder's build
    for name, key in (("jpeg", "compressibility"), ("jpeg-incompressibility", "incompressibility_kB")):
        found = scorers.load(name).score_tensor(pictures, [""] * 3)
        assert found.tolist() == pytest.approx(data[key].tolist(), rel=tolerance)


def test_plain_pictures_compress_better() -> None:
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = scorers.load("jpeg")([torch.full((3, 32, 32), 0.5), noise])
    assert found.score[0] > found.score[1]
    better = scorers.load("jpeg-incompressibility")([torch.full((3, 32, 32), 0.5), noise])
    assert better.score.tolist() == (-found.score).tolist()


def test_batch_equals_single_and_quality_is_checked() -> None:
    x = torch.rand(4, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    whole = Jpeg().score_tensor(x, [""] * 4)
    assert whole.tolist() == [Jpeg().score_tensor(p[None], [""]).item() for p in x]
    assert (Jpeg(quality=50).score_tensor(x, [""] * 4) > whole).all()
    with pytest.raises(ValueError, match="between 1 and 95"):
        Jpeg(quality=0)
