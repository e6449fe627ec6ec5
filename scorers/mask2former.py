"""Mask2Former from a transformers folder as a detector; GenEval's own is the small Swin one of COCO.

That is facebook/mask2former-swin-small-coco-instance. In the options of ``geneval`` and ``tiam`` it is called
``scorers.mask2former:Mask2Former``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers.detect import Detection, box_of
from scorers.loading import need_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEAST = 0.05
"""Confidence below which objects are not even listed."""


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Size that pictures are brought to: a fixed one, or a short side with a limit of the long one."""

    fixed: tuple[int, int] | None = None
    short: int = 800
    long: int = 1333
    divisor: int = 32
    """Sides are padded with zeros to a multiple of this."""

    @classmethod
    def load(cls, folder: Path) -> Resize:
        """Take the sizes from the folder's preprocessor_config.json, else those of the COCO models."""
        file = folder / "preprocessor_config.json"
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        size, divisor = found.get("size") or {}, int(found.get("size_divisor") or 32)
        if "height" in size:
            return cls(fixed=(int(size["height"]), int(size["width"])), divisor=divisor)
        short, long = size.get("shortest_edge", 800), size.get("longest_edge", 1333)
        return cls(short=int(short), long=int(long), divisor=divisor)

    def of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a picture before it is padded."""
        if self.fixed is not None:
            return self.fixed
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return round(height * scale), round(width * scale)


class Mask2Former:
    """Objects with masks; the confidence is the class's times the mask's mean certainty.

    Args:
        model: what ``model_class`` makes.
        resize: how pictures are prepared.
    """

    def __init__(self, model: Any, resize: Resize | None = None) -> None:
        """See the class."""
        self.model, self.resize = model.eval().requires_grad_(False), resize or Resize()
        names: dict[int, str] = dict(model.config.id2label or {})
        self.labels: Sequence[str] = [names[i] for i in sorted(names)]

    @classmethod
    def load(cls, weights: Path | None, *, device: str | torch.device, dtype: torch.dtype) -> Mask2Former:
        """Load a folder with config.json and weights; every key must be there.

        Raises:
            FileNotFoundError: no folder, or no model in it.
            ValueError: weights that do not fit the model.
        """
        folder = need_weights("mask2former", weights, "folder of a saved Mask2Former of instances")
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder} holds no config.json; give the folder of a saved Mask2Former")
        model, info = model_class().from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=dtype
        )
        faults = [k for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for k in info[part]]
        faults = [str(k) for k in faults if not str(k).startswith("criterion.")]  # of training only
        if faults:
            raise ValueError(f"{folder} does not hold the weights of its model: {', '.join(faults[:8])}")
        return cls(model.to(device), Resize.load(folder))

    @torch.no_grad()
    def detect(self, x01: Tensor) -> list[list[Detection]]:
        """See scorers.detect.Detector."""
        pixels, inner = self._prepare(x01.to(self.model.device))
        classes, masks = self.model(pixels.to(self.model.dtype))
        masks = F.interpolate(masks.float(), pixels.shape[-2:], mode="bilinear")
        masks = F.interpolate(masks[..., : inner[0], : inner[1]], x01.shape[-2:], mode="bilinear")
        rows = zip(classes.float(), masks, strict=True)
        return [instances(c, m, self.labels) for c, m in rows]

    def _prepare(self, x01: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised and padded pixels, and the size that is not padding."""
        height, width = self.resize.of(x01.shape[-2], x01.shape[-1])
        x = F.interpolate(x01.float(), (height, width), mode="bilinear", antialias=True)
        mean, std = (x.new_tensor(v)[:, None, None] for v in (MEAN, STD))
        more = [math.ceil(s / self.resize.divisor) * self.resize.divisor - s for s in (height, width)]
        return F.pad((x - mean) / std, (0, more[1], 0, more[0])), (height, width)


def model_class() -> Any:
    """Class of the model: transformers' own for this task cannot be made without its loss, and so scipy.

    Its ``forward`` turns (B, 3, H, W) pixels into (B, Q, C + 1) logits of classes and (B, Q, h, w) of masks.
    """
    from transformers.models.mask2former import modeling_mask2former as published

    class Instances(published.Mask2FormerPreTrainedModel):  # type: ignore[misc]
        """Mask2Former with its class head, under the names of the published weights."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = published.Mask2FormerModel(config)
            self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)
            self.post_init()

        def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
            """(B, Q, C + 1) and (B, Q, h, w) logits of the last layer."""
            out = self.model(pixel_values=pixel_values, output_hidden_states=True)
            last = out.transformer_decoder_intermediate_states[-1].transpose(0, 1)
            return self.class_predictor(last), out.masks_queries_logits[-1]

    return Instances


def instances(classes: Tensor, masks: Tensor, labels: Sequence[str]) -> list[Detection]:
    """Objects of one picture from what its Q queries say (arXiv:2112.01527, section 4.1 and its code).

    Args:
        classes: (Q, C + 1) logits, the last of them for no object.
        masks: (Q, H, W) logits.
        labels: names of the C classes.

    Returns:
        The Q best pairs of query and class whose masks are not empty, and that are not hopeless.
    """
    chance = classes.softmax(-1)[:, :-1]  # (Q, C)
    best, place = chance.flatten().topk(min(len(classes), chance.numel()))
    found = []
    for score, k in zip(best.tolist(), place.tolist(), strict=True):
        logits = masks[k // chance.shape[1]]
        mask = logits > 0
        if mask.any():
            confidence = score * float(logits.sigmoid()[mask].mean())
            if confidence >= LEAST:
                label = labels[k % chance.shape[1]]
                found.append(Detection(label=label, box=box_of(mask), confidence=confidence, mask=mask.cpu()))
    return found
