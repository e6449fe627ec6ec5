"""From image bytes to pixels: decode, resize, crop, flip; all images of one comparison in the same way."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from diffalign.data.records import DataError
from diffalign.data.split import fraction

GRID = 1024
"""Crop positions are multiples of 1 / GRID of the free room."""


class BadImageError(DataError):
    """Bytes that are no whole image."""

    def __init__(self, where: str, reason: str) -> None:
        """Keep both parts for the report."""
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to look at the images of a comparison."""

    top: float = 0.5
    """Position of the crop in the free room, 0 top to 1 bottom."""
    left: float = 0.5
    """The same from left to right, after the flip."""
    flip: bool = False


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Resize the short side to ``resolution``, crop a square, perhaps flip.

    Latents are cached, so what is random is drawn once per comparison from its content: ``random_crop`` gives
    it a place of its own, ``flip`` a second, mirrored view, and the loader picks one of the two every epoch.
    """

    resolution: int = 512
    random_crop: bool = False
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the range."""
        if self.resolution < 1:
            raise DataError(f"resolution is {self.resolution}; it must be a side in pixels, for example 512")

    def views(self, content: str) -> tuple[View, ...]:
        """Views of the comparison with this content hash: one, or with ``flip`` plain and mirrored."""
        top = left = 0.5
        if self.random_crop:
            top, left = (
                round(fraction(f"{side}{content}", self.seed) * GRID) / GRID for side in ("top", "left")
            )
        return tuple(View(top=top, left=left, flip=flip) for flip in self.flips)

    @property
    def flips(self) -> tuple[bool, ...]:
        """Of each view whether it is mirrored."""
        return (False, True) if self.flip else (False,)

    def key(self, view: View) -> str:
        """Everything that decides the pixels, as text for the cache key."""
        crop = f"{view.top:.6f} {view.left:.6f}"
        return f"v1 short side {self.resolution} lanczos crop {crop} flip {int(view.flip)}"

    def apply(self, image: Image.Image, view: View) -> tuple[Tensor, Tensor]:
        """Make (3, R, R) fp32 pixels in [-1, 1] and (6,) int64 sizes.

        Sizes: original height, width, crop top, left (after resize and flip), target height, width.
        """
        width, height = image.size
        side, short = self.resolution, min(width, height)
        size = (max(side, round(width * side / short)), max(side, round(height * side / short)))
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        if view.flip:
            image = ImageOps.mirror(image)
        left, top = round(view.left * (size[0] - side)), round(view.top * (size[1] - side))
        pixels = np.asarray(image.crop((left, top, left + side, top + side)), dtype=np.float32)
        return (
            torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).contiguous(),
            torch.tensor([height, width, top, left, side, side]),
        )


def map_to_latent(pixels: np.ndarray, sizes: Tensor, flip: bool, latent: tuple[int, int]) -> Tensor:
    """Weights of an image's places brought to its latent: resized, mirrored and cropped as the image was.

    Args:
        pixels: (H, W) weights of the upright original's pixels.
        sizes: (6,) what ``Transform.apply`` gave for the image.
        flip: whether the view is mirrored.
        latent: height and width of the latent.

    Returns:
        (1, h, w) fp32, each the mean weight of the pixels below it.
    """
    height, width, top, left, side, _ = (int(v) for v in sizes)
    short = min(height, width)
    grown = (max(side, round(height * side / short)), max(side, round(width * side / short)))
    maps = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))[None, None]
    if maps.shape[-2:] != grown:
        maps = functional.interpolate(maps, grown, mode="bilinear", antialias=True, align_corners=False)
    maps = maps.flip(-1) if flip else maps
    crop = maps[..., top : top + side, left : left + side]
    return functional.adaptive_avg_pool2d(crop, latent)[0]


def decode(data: bytes, where: str) -> Image.Image:
    """RGB image from encoded bytes: turned upright by EXIF, transparency put on white.

    Raises:
        BadImageError: zero bytes, truncated, or no image at all.
    """
    if not data:
        raise BadImageError(where, "zero bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # Pillow's parsers raise whatever broken bytes lead them to
        raise BadImageError(where, f"not a whole image ({type(error).__name__}: {_short(error)})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _short(error: Exception) -> str:
    # Pillow names the in-memory buffer with its address, which tells a reader nothing.
    return str(error).split(" <_io")[0]
