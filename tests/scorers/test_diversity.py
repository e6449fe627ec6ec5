"""Diversity of sets: Vendi goldens, values by hand, invariances, and image towers from folders."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import scorers
from scorers.diversity import (
    mean_cosine_distance,
    mean_squared_distance,
    vendi,
    vendi_of_gram,
)
from scorers.embed import IMAGENET_MEAN, IMAGENET_STD, Crop
from tests.scorers.conftest import GOLDEN

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "vendi.npz") as data:
        return {key: torch.tensor(data[key]) for key in data.files}


@pytest.mark.parametrize(("q", "key"), [(0.5, "q0.5"), (1.0, "q1"), (2.0, "q2"), (math.inf, "qinf")])
def test_golden_vendi_scores(q: float, key: str) -> None:
    data = golden()
    assert vendi_of_gram(data["K"], q).item() == pytest.approx(data[f"score_K_{key}"].item(), abs=1e-6)
    dual = data.get(f"score_dual_{key}", data[f"score_K_{key}"])
    assert vendi(data["X"], q).item() == pytest.approx(dual.item(), abs=1e-6)
    assert vendi(data["X"].mT, q).item() == pytest.approx(  # n < D: not the dual
        vendi_of_gram(_cosines(data["X"].mT), q).item(), abs=1e-9
    )


def test_golden_weights_and_scale() -> None:
    data = golden()
    assert vendi_of_gram(data["K"], shares=data["p"]).item() == pytest.approx(
        data["score_K_p"].item(), abs=1e-6
    )
    scaled = data["X"] @ data["X"].T
    expected = data["score_K_unnorm_normalize"].item()
    assert vendi_of_gram(scaled).item() == pytest.approx(expected, abs=1e-6)
    # The published score_X ignores q and gives order 1; ours heeds it.
    assert data["score_X_q2_ignored"] == data["score_X_q1"]
    assert vendi(data["X"], 2).item() < vendi(data["X"], 1).item() - 0.1


def test_vendi_by_hand() -> None:
    apart, same = torch.eye(4), torch.ones(4, 4)
    assert vendi(torch.stack([apart, same])).tolist() == pytest.approx([4.0, 1.0])
    for q in (0.0, 0.5, 2.0, math.inf):
        assert vendi(apart, q).item() == pytest.approx(4.0)
        assert vendi(same, q).item() == pytest.approx(1.0)
    assert vendi(torch.tensor([[1.0, 0], [1, 0], [0, 1]]), 0).item() == pytest.approx(
        2.0
    )  # kinds, at order 0


def test_distances_by_hand() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    assert mean_cosine_distance(features).item() == pytest.approx(1 - 1 / 3)
    assert mean_squared_distance(features).item() == pytest.approx((5 + 4 + 13) / 3)
    opposite = torch.tensor([[1.0], [-1.0]])
    assert mean_cosine_distance(opposite).item() == pytest.approx(2.0)


def test_bad_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="row \\[1\\] are all 0"):
        vendi(torch.tensor([[1.0], [0.0]]))
    with pytest.raises(ValueError, match="0 or more"):
        vendi(torch.eye(2), -1)
    with pytest.raises(ValueError, match="0 or more"):
        vendi(torch.eye(2), math.nan)
    with pytest.raises(ValueError, match="two pictures"):
        mean_cosine_distance(torch.ones(1, 3))
    with pytest.raises(ValueError, match="add up to 1"):
        vendi_of_gram(torch.eye(2), shares=torch.ones(2))
    with pytest.raises(ValueError, match="not positive"):
        vendi_of_gram(torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\(\.\.\., n, n\)"):
        vendi_of_gram(torch.ones(2, 3))


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    """A saved DINOv2 of a few thousand random weights."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**TINY, mlp_ratio=2))
    folder = tmp_path / "dino"
    folder.mkdir()
    model.config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(size))
    return folder


def test_sets_of_a_saved_tower(dino: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(5, 3, 40, 48, generator=generator)
    prompts = ["a", "b", "a", "b", "a"]
    scorer = scorers.load("dino-diversity", dino)
    found = scorer(pictures, prompts, chunk=2)
    assert found.meta["model"].startswith("dinov2")
    assert found.meta["resize"] == "bicubic short side 32, centre crop 28"
    features = scorer.features(pictures)
    assert found.score[0].item() == pytest.approx(mean_cosine_distance(features[[0, 2, 4]]).item(), abs=1e-5)
    assert found.score[0] == found.score[2] == found.score[4] != found.score[1]
    # Neither order nor the other sets of the batch count, and prompts are names only.
    order = [3, 0, 4, 1, 2]
    shuffled = scorer.score_tensor(pictures[order], [prompts[i] for i in order])
    torch.testing.assert_close(shuffled, found.score[order], atol=1e-5, rtol=0)
    alone = scorer.score_tensor(pictures[[0, 2, 4]], ["c"] * 3)
    torch.testing.assert_close(alone, found.score[[0, 2, 4]], atol=1e-5, rtol=0)
    assert scorer(pictures).score.unique().numel() == 1
    mixed = scorer([*pictures[:2], pictures[2][:, :, :44]])  # sizes may differ, for the tower resizes
    assert mixed.score.unique().numel() == 1


def test_diversity_rises_along_its_gradient(dino: Path) -> None:
    for name in ("vendi", "dino-diversity"):
        scorer = scorers.load(name, dino)
        x = torch.full((3, 3, 32, 32), 0.5) + 0.05 * torch.randn(
            3, 3, 32, 32, generator=torch.Generator().manual_seed(0)
        )
        x.requires_grad_()
        before = scorer.score_tensor(x, ["a"] * 3)
        before[0].backward()
        assert x.grad.abs().max() > 0
        after = scorer.score_tensor(x.detach() + 0.02 * x.grad / x.grad.abs().max(), ["a"] * 3)
        assert after[0] > before[0]


def test_vendi_of_a_clip_folder_and_of_copies(folder: Path) -> None:
    scorer = scorers.load("vendi", folder)
    one = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert scorer.score_tensor(one.expand(3, -1, -1, -1), ["a"] * 3).tolist() == pytest.approx(
        [1.0] * 3, abs=1e-5
    )
    from scorers.pickscore import PickScore

    clip = PickScore.load(folder)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features = torch.nn.functional.normalize(scorer.features(x), dim=-1)
    torch.testing.assert_close(features, clip.encode_images(x), atol=1e-5, rtol=0)


def test_errors_name_the_remedy(dino: Path, tmp_path: Path) -> None:
    scorer = scorers.load("vendi", dino)
    with pytest.raises(ValueError, match="'b' has one only"):
        scorer.score_tensor(torch.rand(3, 3, 32, 32), ["a", "a", "b"])
    with pytest.raises(ValueError, match="nothing to cross"):
        scorer.cross_tensor(torch.rand(2, 3, 32, 32), ["a"])
    with pytest.raises(FileNotFoundError, match="SCORERS_WEIGHTS"):
        scorers.load("vendi")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        scorers.load("vendi", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="holds a bert model"):
        scorers.load("vendi", tmp_path)
    state = {"embeddings.cls_token": torch.zeros(1, 1, 16)}
    save_file(state, dino / "model.safetensors")
    with pytest.raises(ValueError, match="missing"):
        scorers.load("vendi", dino)


def test_crop_leaves_the_right_size_alone() -> None:
    crop = Crop(resize=28, crop=28, mean=(0.0,) * 3, std=(1.0,) * 3)
    x = torch.rand(1, 3, 28, 28)
    assert torch.equal(crop(x), x)
    assert crop(torch.rand(2, 3, 50, 40)).shape == (2, 3, 28, 28)


def test_crop_is_that_of_dinov2s_image_processor() -> None:
    from transformers import BitImageProcessor

    theirs = BitImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}, resample=3,
        image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD),
    )  # fmt: skip
    crop = Crop(resize=32, crop=28, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    smooth = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(smooth[None], (60, 80), mode="bilinear")
    pixels = (picture[0] * 255).round().byte()
    expected = theirs(pixels.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(crop(pixels[None].float() / 255), torch.as_tensor(expected), atol=0.02, rtol=0)


def _cosines(x: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(x, dim=-1)
    return unit @ unit.mT
