"""Digests of what a result hangs on, so that results of one thing are never taken for those of another."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scorers.images import ImageLike
from scorers.votes import Item, Ranking, Rating, Vote

BLOCK = 2**24
"""Bytes of a tensor that are copied to the host at once."""


def weights_digest(scorer: object) -> str:
    """sha256 of every parameter and buffer by name, shape, precision and bytes; "" where there is none.

    The same on every device; reading the weights once is all it costs (about 1 GB a second).
    """
    state = scorer.state_dict() if isinstance(scorer, nn.Module) else {}
    if not state:
        return ""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        _add_tensor(digest, tensor)
    return digest.hexdigest()


def items_digest(items: Sequence[Item]) -> str:
    """sha256 of votes, rankings and ratings: prompts, labels, people, and the content of every picture.

    Files and lazy sources are read once, and not decoded; a picture that was copied or renamed is the same.

    Raises:
        FileNotFoundError: a picture is not there.
    """
    digest = hashlib.sha256()
    for item in items:
        kind, images, rest = _parts(item)
        digest.update(f"{kind} {len(images)} {rest!r};".encode())
        for image in images:
            digest.update(image_digest(image))
    return digest.hexdigest()


def image_digest(image: ImageLike) -> bytes:
    """sha256 of one picture's content: the bytes of a file, else its pixels with shape and kind."""
    digest = hashlib.sha256()
    if isinstance(image, Tensor):
        digest.update(f"{tuple(image.shape)} {image.dtype};".encode())
        _add_tensor(digest, image)
    elif isinstance(image, np.ndarray):
        digest.update(f"{image.shape} {image.dtype};".encode())
        digest.update(np.ascontiguousarray(image).tobytes())
    elif isinstance(image, Image.Image):
        digest.update(f"{image.size} {image.mode};".encode())
        digest.update(image.tobytes())
    elif isinstance(image, str | Path):
        with open(Path(image).expanduser(), "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    elif isinstance(image, io.IOBase):
        digest.update(_all_of(image))
    else:
        digest.update(image if isinstance(image, bytes) else image.read())
    return digest.digest()


def _all_of(file: io.IOBase) -> bytes:
    """Content of an open file, which is left where it stood, as training reads it later."""
    place = file.tell()
    data: bytes = file.read()
    file.seek(place)
    return data


def _parts(item: Item) -> tuple[str, Sequence[ImageLike], tuple[object, ...]]:
    """Kind and pictures of an item, and what else it says; a plain tuple is a vote."""
    if isinstance(item, Ranking):
        return "ranking", item.images, (item.prompt, tuple(map(float, item.values)), item.user, item.dim)
    if isinstance(item, Rating):
        return "rating", [item.image], (item.prompt, tuple(map(float, item.values)), item.user)
    vote = item if isinstance(item, Vote) else Vote(*item)
    return "vote", [vote.first, vote.second], (vote.prompt, float(vote.label), vote.user, vote.dim)


def _add_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Bytes of a tensor, part by part, so that no second copy of large weights is needed."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.new_empty(0)
    for start in range(0, flat.numel(), BLOCK):
        digest.update(flat[start : start + BLOCK].cpu().numpy().tobytes())
