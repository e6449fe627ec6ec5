"""Bodies of the reward server: pictures and prompts as safetensors or npz, never pickled."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from scorers.each import Outcome, failed
from scorers.images import to_tensor

SAFETENSORS = "application/x-safetensors"
NPZ = "application/x-npz"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Encoded pictures that a server opens; Pillow knows more, some of which run other programs (EPS)."""


class WireError(ValueError):
    """A body that cannot be understood."""


class TooLargeError(WireError):
    """A body over a limit."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may hold."""

    body: int = 256 * 2**20
    """Bytes, also after unpacking."""
    items: int = 256
    """Pictures."""
    pixels: int = 4096 * 4096
    """Of one picture."""
    prompt: int = 20_000
    """Characters of one prompt."""


def encode(pictures: Sequence[Tensor], prompts: Sequence[str]) -> bytes:
    """A safetensors body of (3, H, W) pictures in [0, 1]; those that came from bytes travel as bytes."""
    from safetensors.torch import save

    tensors = {f"image.{i}": _small(picture).contiguous() for i, picture in enumerate(pictures)}
    return save(tensors, metadata={"prompts": json.dumps(list(prompts))})


def encode_npz(pictures: Sequence[np.ndarray[Any, Any]], prompts: Sequence[str]) -> bytes:
    """An npz body: arrays ``image.0``, ... and ``prompts``, the bytes of a JSON list."""
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(list(prompts)).encode(), dtype=np.uint8)
    arrays = {f"image.{i}": picture for i, picture in enumerate(pictures)}
    np.savez(buffer, allow_pickle=False, prompts=text, **arrays)
    return buffer.getvalue()


def decode(body: bytes, kind: str, limits: Limits) -> tuple[list[Tensor | Outcome], list[str]]:
    """Pictures (or why one is none) and prompts of a body.

    A picture is uint8 or float (3, H, W) in [0, 1], or the uint8 bytes (N,) of an encoded file.

    Raises:
        WireError: not a body of this kind, or not as many prompts as pictures.
        TooLargeError: too many pictures, or too large when unpacked.
    """
    if kind == SAFETENSORS:
        tensors, text = _safetensors(body)
    elif kind == NPZ:
        tensors, text = _npz(body, limits)
    else:
        raise WireError(f"content type {kind!r} is not understood; send {SAFETENSORS} or {NPZ}")
    prompts = _prompts(text, limits)
    if len(prompts) > limits.items:
        raise TooLargeError(f"{len(prompts)} pictures in a request; at most {limits.items} are taken")
    wanted = {f"image.{i}" for i in range(len(prompts))}
    if wanted != set(tensors):
        raise WireError(
            f"{len(prompts)} prompts but {len(tensors)} arrays; send image.0, image.1, ... with a prompt each"
        )
    _check_unpacked(tensors, limits)
    return [_picture(tensors[f"image.{i}"], i, limits) for i in range(len(prompts))], prompts


def _safetensors(body: bytes) -> tuple[Mapping[str, Tensor], str]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(body)
        length = int.from_bytes(body[:8], "little")
        meta = json.loads(body[8 : 8 + length])["__metadata__"]
        return tensors, str(meta["prompts"])
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise WireError(f"the body is no safetensors with prompts in its metadata ({error})") from error


def _npz(body: bytes, limits: Limits) -> tuple[Mapping[str, Tensor], str]:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as packed:
            size = sum(info.file_size for info in packed.infolist())
        if size > limits.body:
            raise TooLargeError(f"the npz unpacks to {size} bytes; at most {limits.body} are taken")
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        text = arrays.pop("prompts").tobytes().decode()
        return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}, text
    except TooLargeError:
        raise
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, OSError, EOFError) as error:
        raise WireError(f"the body is no npz of plain arrays with prompts ({error})") from error


def _prompts(text: str, limits: Limits) -> list[str]:
    try:
        prompts = json.loads(text)
    except ValueError as error:
        raise WireError(f"prompts are no JSON ({error})") from error
    if not isinstance(prompts, list) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise WireError("prompts must be a JSON list of texts, one per picture")
    longest = max(map(len, prompts))
    if longest > limits.prompt:
        raise TooLargeError(f"a prompt has {longest} characters; at most {limits.prompt} are taken")
    return prompts


def _picture(tensor: Tensor, i: int, limits: Limits) -> Tensor | Outcome:
    """A picture, or what is wrong with it."""
    try:
        if tensor.ndim == 1 and tensor.dtype == torch.uint8:
            data = tensor.numpy().tobytes()
            _check_pixels(*_header(data, i), i, limits)
            return to_tensor(data, where=f"image {i}")
        if tensor.ndim == 3:
            _check_pixels(tensor.shape[1], tensor.shape[2], i, limits)
        return to_tensor(tensor, where=f"image {i}")
    except (ValueError, TypeError) as error:
        return failed(error)


def _check_unpacked(tensors: Mapping[str, Tensor], limits: Limits) -> None:
    """Many small files of one colour each would unpack to more than the memory.

    Raises:
        TooLargeError: over the limit of the body, at three bytes a pixel.
    """
    size = 0
    for i in range(len(tensors)):
        tensor = tensors[f"image.{i}"]
        if tensor.ndim == 1 and tensor.dtype == torch.uint8:
            with contextlib.suppress(ValueError):  # no picture: said beside its place later
                height, width = _header(tensor.numpy().tobytes(), i)
                size += 3 * height * width if height * width <= limits.pixels else 0
    if size > limits.body:
        raise TooLargeError(f"the pictures unpack to {size} bytes; at most {limits.body} are taken")


def _header(data: bytes, i: int) -> tuple[int, int]:
    """Height and width of an encoded picture, before it is unpacked."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {i} is no picture in a known format ({error})") from None


def _check_pixels(height: int, width: int, i: int, limits: Limits) -> None:
    if height * width > limits.pixels:
        raise ValueError(
            f"image {i} has {height} x {width} pixels; at most {limits.pixels} are taken: make it smaller"
        )


def _small(picture: Tensor) -> Tensor:
    """uint8 where that loses nothing, else float32."""
    picture = picture.detach().float().cpu()
    as_bytes = (picture * 255).round().clamp(0, 255).byte()
    return as_bytes if torch.equal(as_bytes.float() / 255, picture) else picture
