"""Anything that shows a picture, turned into (3, H, W) tensors in [0, 1], RGB."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""How far a float may lie outside its range (rounding of decoders) before it is refused."""


@runtime_checkable
class Readable(Protocol):
    """An open file, or a lazy source of an encoded picture."""

    def read(self) -> bytes:
        """Return the encoded picture."""
        ...


@runtime_checkable
class Located(Protocol):
    """A source that can say where it comes from."""

    @property
    def where(self) -> str:
        """What to call the picture in errors, e.g. ``pairs.parquet row 17 column jpg_1``."""
        ...


ImageLike: TypeAlias = "Image.Image | str | Path | bytes | np.ndarray[Any, Any] | Tensor | Readable"
"""PIL picture, path, encoded bytes, (H, W, 3 or 4) array, (3 or 4, H, W) tensor, or what has ``read()``."""


def to_tensor(
    image: ImageLike, value_range: tuple[float, float] = (0.0, 1.0), where: str = "image"
) -> Tensor:
    """Turn one picture into (3, H, W) float32 in [0, 1].

    Transparency is laid on white, the camera's orientation (EXIF) is applied. A float tensor keeps its graph
    and device.

    Args:
        image: see ImageLike. Integers must be uint8; floats lie in ``value_range``.
        value_range: meaning of floats, ``(-1, 1)`` for the output of a VAE. Files and uint8 need no range.
        where: what to call the picture in errors.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: not a picture, damaged, wrong shape, or floats outside the range.
        TypeError: a kind of object or number that is not understood.
    """
    if isinstance(image, Tensor):
        return _from_tensor(image, value_range, where)
    if isinstance(image, np.ndarray):
        return _from_array(image, value_range, where)
    if isinstance(image, Image.Image):
        return _from_pil(image, where)
    if isinstance(image, str | Path | bytes | Readable):
        return _from_pil(_open(image, where), where)
    raise TypeError(
        f"{where}: {type(image).__name__} is no picture; give a PIL image, path, bytes, array or tensor"
    )


def to_tensors(
    images: ImageLike | Sequence[ImageLike], value_range: tuple[float, float] = (0.0, 1.0)
) -> list[Tensor]:
    """Turn a picture, a list of pictures of any sizes, or a batch of four dimensions into (3, H, W) tensors.

    Raises:
        ValueError: no picture at all, or see ``to_tensor``; the message counts the pictures from 0.
    """
    batch = list(_items(images))
    if not batch:
        raise ValueError("no images to score: the list is empty")
    return [to_tensor(image, value_range, _name(image, i)) for i, image in enumerate(batch)]


def _items(images: ImageLike | Sequence[ImageLike]) -> Iterable[ImageLike]:
    if isinstance(images, Tensor | np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Image.Image | str | Path | bytes | Readable):
        return [images]
    return images


def _name(image: ImageLike, index: int) -> str:
    if isinstance(image, Located) and isinstance(image.where, str):  # a tensor's where() is something else
        return f"image {index} ({image.where})"
    return f"image {index} ({image})" if isinstance(image, str | Path) else f"image {index}"


def _open(source: str | Path | bytes | Readable, where: str) -> Image.Image:
    """Decode completely, so that a truncated file fails here and with its name."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{where}: there is no file {path}")
        data = path.read_bytes()
    else:
        data = source if isinstance(source, bytes) else source.read()
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        raise ValueError(f"{where}: {len(data)} bytes that are no picture in a known format") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: the picture is damaged or too large ({error})") from error
    return image


def _from_pil(image: Image.Image, where: str) -> Tensor:
    if image.mode == "F":
        raise ValueError(f"{where}: float pictures have no known range; give an array or a tensor in [0, 1]")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit greys, which Pillow would clip at 255
        image = Image.fromarray(
            np.round(np.asarray(image, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)
        )
    if image.has_transparency_data:
        logger.warning("%s is transparent; it is laid on white", where)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return _scaled(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1))


def _from_array(array: np.ndarray[Any, Any], value_range: tuple[float, float], where: str) -> Tensor:
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        raise ValueError(
            f"{where}: an array must be (height, width, 3), got {array.shape}; tensors are (3, height, width)"
        )
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise TypeError(
            f"{where}: arrays must be uint8 or float, got {array.dtype}; convert it, e.g. astype('uint8')"
        )
    return _from_tensor(torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1), value_range, where)


def _from_tensor(tensor: Tensor, value_range: tuple[float, float], where: str) -> Tensor:
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 3 or tensor.shape[0] not in (3, 4) or 0 in tensor.shape:
        shape = tuple(tensor.shape)
        raise ValueError(
            f"{where}: a tensor must be (3, height, width), got {shape}; arrays are (height, width, 3)"
        )
    if tensor.dtype == torch.uint8:
        tensor = _scaled(tensor)
    elif tensor.is_floating_point():
        tensor = _ranged(tensor.float(), value_range, where)
    else:
        raise TypeError(
            f"{where}: tensors must be uint8 or float, got {tensor.dtype}; convert it, e.g. tensor.byte()"
        )
    if len(tensor) == 4:
        logger.warning("%s is transparent; it is laid on white", where)
        tensor = tensor[:3] * tensor[3:] + 1 - tensor[3:]
    return tensor


def _scaled(bytes_: Tensor) -> Tensor:
    return bytes_.float() / 255


def _ranged(tensor: Tensor, value_range: tuple[float, float], where: str) -> Tensor:
    low, high = value_range
    least, most = tensor.detach().aminmax()
    slack = TOLERANCE * (high - low)
    if not (least >= low - slack and most <= high + slack):  # written so that NaN fails too
        raise ValueError(
            f"{where}: floats must lie in [{low:g}, {high:g}], not {float(least):.4g} to {float(most):.4g}; "
            "rescale them, or say value_range=(-1, 1), or give uint8"
        )
    return (tensor - low) / (high - low)
