"""A tiny encoder instead of a model, small pictures, and pairs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffalign.data import BytesImage, Record


class FakeEncoder:
    """Latents are 4x4 means of the pixels; embeddings are as long as the prompt. Counts what it is asked."""

    def __init__(self, vae: str = "vae", text: str = "text") -> None:
        self.ids = {"vae": vae, "text": text}
        self.images_seen = 0
        self.prompts_seen: list[str] = []

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.images_seen += len(pixels)
        mean = torch.nn.functional.avg_pool2d(pixels, pixels.shape[-1] // 4)
        return mean, torch.full_like(mean, -3.0)

    def encode_prompts(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        self.prompts_seen += prompts
        return [
            {"text": torch.full((len(p) + 1, 2), float(len(p))), "pooled": torch.tensor([digest(p)])}
            for p in prompts
        ]

    def collate_prompts(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        text = torch.nn.utils.rnn.pad_sequence([r["text"] for r in rows], batch_first=True)
        return {"text": text, "pooled": torch.stack([r["pooled"] for r in rows])}

    def encoder_id(self, part: str) -> str:
        return self.ids[part]


def digest(prompt: str) -> float:
    """A number that tells prompts apart."""
    return float(int(hashlib.sha256(prompt.encode()).hexdigest()[:5], 16))


def picture(seed: int, size: tuple[int, int] = (16, 16)) -> BytesImage:
    """PNG of coloured noise, (height, width)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return BytesImage.from_array(pixels, f"picture {seed}")


def pair(seed: int, p0: float = 1.0, prompt: str | None = None, rater: str | None = None) -> Record:
    """A pair of pictures of their own."""
    return Record(
        prompt=f"prompt {seed}" if prompt is None else prompt,
        images=(picture(2 * seed), picture(2 * seed + 1)),
        kind="pair",
        values=(p0, 1 - p0),
        rater=rater,
        source=f"pair {seed}",
    )
