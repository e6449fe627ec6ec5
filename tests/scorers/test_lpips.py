"""LPIPS against the published package, on a random trunk, and from torchvision's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

import scorers
from scorers.lpips import TRUNKS, Lpips, layer_distance, normalised
from tests.scorers.conftest import GOLDEN

STATE = GOLDEN / "lpips_squeeze_rand_state_dict.safetensors"


def golden(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as data:
        return {key: torch.tensor(data[key]) for key in data.files}


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    return Lpips.load(STATE, device="cpu", dtype=torch.float32)


def test_golden_distance_layers_and_gradient(lpips: Lpips) -> None:
    data = golden("lpips_squeeze_rand")
    x = data["img0"].requires_grad_()
    found = lpips.distance(x, data["img1"])
    assert found.tolist() == pytest.approx(data["value"].flatten().tolist(), abs=1e-6)
    for k, part in enumerate(lpips.layers(x, data["img1"])):
        assert part.tolist() == pytest.approx(data[f"layer{k}"].flatten().tolist(), abs=1e-6)
    found.sum().backward()
    torch.testing.assert_close(x.grad, data["grad_img0"], atol=1e-7, rtol=1e-4)


def test_golden_features() -> None:
    data = golden("lpips_features")
    pairs = [(normalised(data[f"f0_{i}"]), normalised(data[f"f1_{i}"]), data[f"w{i}"]) for i in (0, 1)]
    found = sum(layer_distance(a, b, w) for a, b, w in pairs)
    assert found.tolist() == pytest.approx(data["value"].flatten().tolist(), abs=1e-6)


def test_distance_is_symmetric_zero_for_copies_and_batch_equals_single(lpips: Lpips) -> None:
    data = golden("lpips_squeeze_rand")
    a, b = data["img0"], data["img1"]
    assert lpips.distance(a, a).tolist() == [0.0, 0.0]
    torch.testing.assert_close(lpips.distance(a, b), lpips.distance(b, a))
    single = torch.cat([lpips.distance(a[i : i + 1], b[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(single, lpips.distance(a, b), atol=1e-6, rtol=0)


def test_a_step_along_the_gradient_brings_pictures_apart(lpips: Lpips) -> None:
    data = golden("lpips_squeeze_rand")
    x = data["img0"][:1].requires_grad_()
    before = lpips.distance(x, data["img1"][:1])
    before.backward()
    after = lpips.distance(x.detach() + 0.01 * x.grad / x.grad.abs().max(), data["img1"][:1])
    assert after > before


def test_diversity_is_the_mean_over_pairs(lpips: Lpips) -> None:
    data = golden("lpips_squeeze_rand")
    x = torch.cat([data["img0"], data["img1"][:1]])[:, :, :48, :48]
    found = scorers.load("lpips-diversity", STATE)(x, "a")
    pairs = [lpips.distance(x[i : i + 1], x[j : j + 1]).item() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.score.tolist() == pytest.approx([sum(pairs) / 3] * 3, rel=1e-4)
    shuffled = scorers.load("lpips-diversity", STATE)(x[[2, 0, 1]], "a")
    torch.testing.assert_close(shuffled.score, found.score)
    with pytest.raises(ValueError, match="one size only"):
        scorers.load("lpips-diversity", STATE)([x[0], x[1, :, :40]], "a")


@pytest.mark.parametrize("kind", ["squeeze", pytest.param("alex", marks=pytest.mark.slow)])
def test_loads_torchvision_and_lpips_files_together(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trunk = getattr(torchvision.models, TRUNKS[kind].network)(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")  # with its classifier
    lins = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(TRUNKS[kind].channels)}
    torch.save(lins, tmp_path / f"{kind}.pth")
    found = scorers.load("lpips", tmp_path)
    a, b = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert (found.distance(a, b) > 0).all()
    # The same by the trunk itself, layer by layer.
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total, x, y = torch.zeros(2), *((2 * p - 1 - shift[:, None, None]) / scale[:, None, None] for p in (a, b))
    taps = list(TRUNKS[kind].taps)
    for i, layer in enumerate(trunk.eval().features[: taps[-1] + 1]):
        x, y = layer(x), layer(y)
        if i in taps:
            total = total + layer_distance(
                normalised(x), normalised(y), lins[f"lin{taps.index(i)}.model.1.weight"]
            )
    torch.testing.assert_close(found.distance(a, b), total, atol=1e-5, rtol=1e-5)


def test_vgg_is_tapped_at_the_ends_of_its_five_blocks() -> None:
    layers = torchvision.models.vgg16
    with torch.device("meta"):
        features = layers(weights=None).features
    ends = [i - 1 for i, layer in enumerate(features) if isinstance(layer, torch.nn.MaxPool2d)]
    assert list(TRUNKS["vgg"].taps) == ends
    assert all(isinstance(features[i], torch.nn.ReLU) for i in ends)


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="SCORERS_WEIGHTS"):
        scorers.load("lpips")
    with pytest.raises(FileNotFoundError, match="holds no"):
        scorers.load("lpips", tmp_path)
    state = load_file(STATE)
    broken = {k: v for k, v in state.items() if k != "net.slice2.3.squeeze.bias"}
    save_file(broken, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"missing .*features\.3\.squeeze\.bias"):
        scorers.load("lpips", tmp_path / "a.safetensors")
    save_file({k: v for k, v in state.items() if k.startswith("net.")}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight"):
        scorers.load("lpips", tmp_path / "a.safetensors")
    save_file({**state, "lin0.model.1.weight": -state["lin0.model.1.weight"]}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="negative"):
        scorers.load("lpips", tmp_path / "a.safetensors")


def test_alone_a_picture_has_no_distance(lpips: Lpips) -> None:
    with pytest.raises(ValueError, match="call distance"):
        lpips.score_tensor(torch.rand(1, 3, 64, 64), [""])
    with pytest.raises(ValueError, match="one size"):
        lpips.distance(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 32, 32))
