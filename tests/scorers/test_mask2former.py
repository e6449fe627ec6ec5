"""Mask2Former as a detector: from logits to objects by hand, and a tiny model from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from scorers.mask2former import Mask2Former, Resize, instances, model_class


def test_objects_of_logits_by_hand() -> None:
    classes = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.0, 9.0], [0.0, 9.0, 0.0]])  # a cat, nothing, a dog
    masks = torch.full((3, 6, 8), -9.0)
    masks[0, 1:3, 2:5] = 9.0
    masks[1] = 9.0
    found = instances(classes, masks, ["cat", "dog"])
    assert [d.label for d in found] == ["cat"]  # the dog's mask is empty, and nothing is hopeless
    (cat,) = found
    assert cat.box == (2.0, 1.0, 5.0, 3.0)
    certainty = torch.tensor(9.0).sigmoid().item()
    assert cat.confidence == pytest.approx(classes[0].softmax(0)[0].item() * certainty, rel=1e-5)
    assert cat.mask is not None
    assert cat.mask.sum() == 6


def test_one_query_may_be_two_classes() -> None:
    classes = torch.tensor([[5.0, 5.0, 0.0], [0.0, 0.0, 9.0]])
    masks = torch.full((2, 4, 4), 9.0)
    assert sorted(d.label for d in instances(classes, masks, ["cat", "dog"])) == ["cat", "dog"]


def test_sizes() -> None:
    assert Resize().of(100, 200) == (666, 1333) or Resize().of(100, 200) == (667, 1333)
    assert Resize().of(100, 100) == (800, 800)
    assert Resize(fixed=(384, 384)).of(10, 20) == (384, 384)


class Bright(torch.nn.Module):
    """Stands for the model: one query, whose mask is what is bright."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(id2label={0: "lamp"})

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert pixels.shape[-2:] == (32, 64)  # padded
        mask = torch.where(pixels.mean(1, keepdim=True) > 1, 9.0, -9.0)
        return torch.tensor([[[9.0, 0.0]]]).expand(len(pixels), -1, -1), mask


def test_masks_are_those_of_the_picture_without_its_padding() -> None:
    picture = torch.zeros(1, 3, 48, 80)
    picture[..., 40:] = 1
    ((lamp,),) = Mask2Former(Bright(), Resize(short=24, long=40)).detect(picture)
    assert lamp.box == pytest.approx((40, 0, 80, 48), abs=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import Mask2FormerConfig, SwinConfig

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_layers=1,
        encoder_feedforward_dim=8, decoder_layers=2, dim_feedforward=8, num_attention_heads=1, num_queries=4,
        id2label={0: "cat", 1: "dog"},
    )  # fmt: skip
    model_class()(config).save_pretrained(tmp_path / "m")
    size = {"size": {"height": 64, "width": 64}, "size_divisor": 32}
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(size))
    return tmp_path / "m"


def test_a_saved_model_detects(folder: Path) -> None:
    detector = Mask2Former.load(folder, device="cpu", dtype=torch.float32)
    assert detector.labels == ["cat", "dog"]
    x = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    found = detector.detect(x)
    assert len(found) == 2
    for objects in found:
        for one in objects:
            assert one.mask is not None
            assert one.mask.shape == (40, 24)
            left, top, right, bottom = one.box
            assert 0 <= left < right <= 24
            assert 0 <= top < bottom <= 40
    (single,) = detector.detect(x[1:])
    assert [d.confidence for d in single] == pytest.approx([d.confidence for d in found[1]], abs=1e-4)


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    with pytest.raises(FileNotFoundError, match="mask2former"):
        Mask2Former.load(None, device="cpu", dtype=torch.float32)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        Mask2Former.load(tmp_path, device="cpu", dtype=torch.float32)
    file = folder / "model.safetensors"
    state = load_file(file)
    lost = next(k for k in state if k.startswith("class_predictor"))
    save_file({k: v for k, v in state.items() if k != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="class_predictor"):
        Mask2Former.load(folder, device="cpu", dtype=torch.float32)
