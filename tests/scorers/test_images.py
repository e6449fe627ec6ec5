"""Every way to hand in a picture, and what is said of bad ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scorers.images import ImageLike, to_tensor, to_tensors


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_all_forms_agree(array: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(array)
    (tmp_path / "a.png").write_bytes(png(image))
    wanted = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    forms: list[ImageLike] = [
        array,
        array.astype(np.float64) / 255,
        image,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png(image),
        io.BytesIO(png(image)),
        torch.from_numpy(array).permute(2, 0, 1),
        wanted,
    ]
    for form in forms:
        torch.testing.assert_close(to_tensor(form), wanted, rtol=0, atol=1e-6, msg=str(type(form)))
    torch.testing.assert_close(to_tensor(wanted * 2 - 1, value_range=(-1, 1)), wanted)


def test_lists_and_batches(array: np.ndarray) -> None:
    batch = torch.rand(4, 3, 8, 6)
    assert [t.shape for t in to_tensors(batch)] == [(3, 8, 6)] * 4
    assert [t.shape for t in to_tensors([batch[0], array])] == [(3, 8, 6), (3, 5, 7)]
    assert len(to_tensors(array)) == 1
    assert len(to_tensors(np.stack([array, array]))) == 2


def test_grey_and_sixteen_bit() -> None:
    grey = np.full((4, 4), 128, dtype=np.uint8)
    assert to_tensor(grey).shape == (3, 4, 4)
    sixteen = Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16))
    torch.testing.assert_close(to_tensor(sixteen), torch.full((3, 4, 4), 128 / 255))


@pytest.mark.parametrize("alpha", [0, 128, 255])
def test_transparency_is_laid_on_white(alpha: int, caplog: pytest.LogCaptureFixture) -> None:
    red = np.zeros((2, 2, 4), dtype=np.uint8)
    red[..., 0], red[..., 3] = 255, alpha
    wanted = torch.tensor([1.0, 1 - alpha / 255, 1 - alpha / 255])[:, None, None].expand(3, 2, 2)
    torch.testing.assert_close(to_tensor(Image.fromarray(red)), wanted, rtol=0, atol=1 / 255)
    torch.testing.assert_close(to_tensor(red), wanted)
    assert "laid on white" in caplog.text


def test_camera_orientation_is_applied(array: np.ndarray) -> None:
    image, exif, buffer = Image.fromarray(array), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(buffer, "PNG", exif=exif)
    assert to_tensor(buffer.getvalue()).shape == (3, 7, 5)


def test_a_tensor_keeps_its_graph() -> None:
    x = torch.rand(3, 4, 4, requires_grad=True)
    to_tensor(x).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None


@pytest.mark.parametrize(
    ("image", "error", "says"),
    [
        (torch.rand(3, 4, 4) * 255, ValueError, r"floats must lie in \[0, 1\].*uint8"),
        (torch.full((3, 4, 4), torch.nan), ValueError, "floats must lie"),
        (torch.rand(3, 4, 4) - 0.5, ValueError, r"value_range=\(-1, 1\)"),
        (torch.rand(8, 6, 3), ValueError, r"must be \(3, height, width\), got \(8, 6, 3\)"),
        (np.zeros((3, 8, 6), dtype=np.uint8), ValueError, r"must be \(height, width, 3\), got \(3, 8, 6\)"),
        (np.zeros((4, 4, 3), dtype=np.int64), TypeError, "uint8 or float, got int64"),
        (torch.zeros(3, 4, 4, dtype=torch.int32), TypeError, "uint8 or float"),
        (b"", ValueError, "0 bytes that are no picture"),
        (b"no picture", ValueError, "no picture"),
        ("nowhere.png", FileNotFoundError, r"image 0 \(nowhere.png\): there is no file"),
        (7, TypeError, "int is no picture"),
    ],
)
def test_bad_pictures_are_named(image: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        to_tensors([image])  # type: ignore[list-item]


def test_truncated_file_is_named(array: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "cut.png"
    file.write_bytes(png(Image.fromarray(np.tile(array, (20, 20, 1))))[:-400])
    with pytest.raises(ValueError, match=r"cut\.png.*damaged"):
        to_tensors([file])


def test_lazy_source_is_named() -> None:
    class Source:
        where = "pairs.parquet row 17 column jpg_1"

        def read(self) -> bytes:
            return b"oops"

    with pytest.raises(ValueError, match="row 17"):
        to_tensors([Source()])


def test_an_empty_list_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        to_tensors([])
