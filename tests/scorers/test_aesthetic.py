"""Aesthetic predictors against the published code, their layouts, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

import scorers
from scorers.aesthetic import Aesthetic, AestheticV1, AestheticV2, AestheticV25, V2Head, V25Head, siglip_tower
from scorers.preprocess import Preprocess, SquashPreprocess
from tests.scorers.conftest import GOLDEN, tiny_clip
from tests.scorers.contract import check_contract
from tests.scorers.test_losses import golden

SIGLIP = SiglipVisionConfig(
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,
    image_size=28,
    patch_size=14,
)
NAMES = {
    "aesthetic-v1": "sa_0_4_vit_l_14_linear.pth",
    "aesthetic-v2": "sac+logos+ava1-l14-linearMSE.pth",
    "aesthetic-v2.5": "aesthetic_predictor_v2_5.pth",
}


def v25_parts() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The golden tower in the layout of its time, and the golden head."""
    state = load_file(GOLDEN / "aesthetic_v25_tiny_state_dict.safetensors")
    tower = {k: v for k, v in state.items() if k.startswith("vision_model.")}
    head = {k.removeprefix("layers."): v for k, v in state.items() if k.startswith("layers.")}
    return tower, head


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """A folder for each predictor, as a user lays it out, with tiny towers."""
    made = {}
    for name, file in NAMES.items():
        made[name] = tmp_path / name
        torch.manual_seed(2)
        if name == "aesthetic-v2.5":
            tower, head = v25_parts()
            SIGLIP.save_pretrained(made[name])
            extra = {"text_model.head.weight": torch.ones(1), "logit_scale": torch.ones(1)}
            save_file({**tower, **extra}, made[name] / "model.safetensors")
        else:
            tiny_clip().save_pretrained(made[name])
            head = (nn.Linear(16, 1) if name == "aesthetic-v1" else V2Head(16)).state_dict()
        torch.save(head, made[name] / file)
    return made


def test_v2_of_the_published_code() -> None:
    data, head = golden("laion_mlp"), V2Head(24)
    head.load_state_dict(load_file(GOLDEN / "laion_mlp_state_dict.safetensors"), strict=True)
    scorer = AestheticV2(nn.Identity(), head, 28)
    score = scorer.feature_score(data["embeds"])
    torch.testing.assert_close(score, data["score"][:, 0], rtol=1e-5, atol=1e-5)
    affine = data["embeds_norm"] @ data["affine_w"].T + data["affine_b"]
    torch.testing.assert_close(score, affine[:, 0], rtol=1e-5, atol=1e-5)


def test_v25_of_the_published_code(folders: dict[str, Path]) -> None:
    data, scorer = golden("aesthetic_v25_tiny"), scorers.load("aesthetic-v2.5", folders["aesthetic-v2.5"])
    assert isinstance(scorer, AestheticV25)
    pixels = data["pixel_values"].clone().requires_grad_()
    features = scorer.image_features(pixels)
    torch.testing.assert_close(features, data["pooler"], rtol=1e-5, atol=1e-5)
    score = scorer.feature_score(features)
    torch.testing.assert_close(score, data["score"][:, 0], rtol=1e-5, atol=1e-5)
    score.sum().backward()
    torch.testing.assert_close(pixels.grad, data["grad_pixels"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", list(NAMES))
def test_contract(name: str, folders: dict[str, Path]) -> None:
    scorer = scorers.load(name, folders[name])
    check_contract(scorer)
    x = torch.rand(2, 3, 40, 40)
    assert isinstance(scorer, Aesthetic)
    assert torch.equal(scorer(x).score, scorer(x, ["a cat", ""]).score)
    half = scorers.load(name, folders[name], dtype="bfloat16")
    assert half.score_tensor(x, ["", ""]).dtype == torch.float32
    torch.testing.assert_close(half.score_tensor(x, ["", ""]), scorer(x).score, rtol=0, atol=0.05)


def test_v1_by_hand_and_a_feature_of_zero() -> None:
    head = nn.Linear(2, 1)
    head.load_state_dict({"weight": torch.tensor([[2.0, 1.0]]), "bias": torch.tensor([5.0])})
    scorer = AestheticV1(nn.Identity(), head, 28)
    found = scorer.feature_score(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([5 + 2 * 0.6 + 0.8, 5.0]))


def test_transforms() -> None:
    assert AestheticV2(nn.Identity(), V2Head(4), 28).preprocess == Preprocess(size=28, crop="round")
    assert AestheticV25(nn.Identity(), V25Head(4), 28).preprocess == SquashPreprocess(size=28)
    assert SquashPreprocess(size=28)(torch.rand(1, 3, 10, 90)).shape == (1, 3, 28, 28)


def test_variant_with_activations(folders: dict[str, Path]) -> None:
    folder = folders["aesthetic-v2"]
    (folder / NAMES["aesthetic-v2"]).unlink()
    head = V2Head(16, relu=True)
    assert [k for k in head.state_dict() if k.endswith("weight")] == [
        f"layers.{i}.weight" for i in (0, 3, 6, 9, 11)
    ]
    torch.save(head.state_dict(), folder / "ava+logos-l14-reluMSE.pth")
    scorer: Any = scorers.load("aesthetic-v2", folder)
    x = F.normalize(torch.randn(3, 16), dim=1)
    torch.testing.assert_close(scorer.feature_score(x), head.eval()(x)[:, 0])
    assert sum(isinstance(m, nn.ReLU) for m in scorer.head.layers) == 4


@pytest.mark.slow
def test_open_clip_tower(tmp_path: Path) -> None:
    from open_clip import CLIP

    from scorers.hps import HpsV1
    from tests.scorers.test_open_clip import TINY, letters

    model = CLIP(**TINY)
    model.sizes = TINY
    other = HpsV1(model, letters)
    other.save(tmp_path)
    save_file(nn.Linear(16, 1).state_dict(), tmp_path / "head.safetensors")
    scorer: Any = scorers.load("aesthetic-v1", tmp_path)
    x = torch.rand(2, 3, 28, 30)
    features = scorer.image_features(scorer.preprocess(x))
    torch.testing.assert_close(F.normalize(features, dim=1), other.encode_images(x))


def test_licence_is_told(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        scorers.load("aesthetic-v2.5", folders["aesthetic-v2.5"])
    assert "AGPL-3.0" in caplog.text


def test_published_sizes_of_siglip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"vision_model.x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="checkpoint of another model"):
        siglip_tower(tmp_path)
    from scorers.aesthetic import _siglip_config

    with torch.device("meta"):
        tower = SiglipVisionModel(_siglip_config(tmp_path))
    assert sum(p.numel() for p in tower.parameters()) // 10**6 == 428


def test_bad_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["aesthetic-v2"]
    torch.save(nn.Linear(16, 1).state_dict(), folder / NAMES["aesthetic-v2"])
    with pytest.raises(ValueError, match=r"linearMSE\.pth does not hold the weights of this V2Head"):
        scorers.load("aesthetic-v2", folder)
    with pytest.raises(FileNotFoundError, match=r"holds no head; put sa_0_4_vit_l_14_linear\.pth or"):
        scorers.load("aesthetic-v1", folder)
    save_file(nn.Linear(16, 1).state_dict(), tmp_path / "head.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds no tower: neither config\.json"):
        scorers.load("aesthetic-v1", tmp_path)
