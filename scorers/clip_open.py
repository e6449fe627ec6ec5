"""What the scorers on an open_clip model share: layouts, sizes, tokenizer, features, saving."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers.clip_layouts import to_open_clip
from scorers.load_options import LoadOptions, PictureOptions
from scorers.loading import build, need_weights, read_state
from scorers.preprocess import Preprocess, Transform
from scorers.texts import refuse_special
from scorers.two_tower import TwoTower

if TYPE_CHECKING:
    from open_clip import CLIP

Tokenize = Callable[[list[str]], Tensor]

CONFIG = "open_clip_config.json"
FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weights in a folder of the hub, beside which there may be the same model in other layouts."""
SPECIAL = ("<start_of_text>", "<end_of_text>")
"""What open_clip's tokenizer obeys; it reads OpenAI's <|endoftext|> as plain characters."""


class OpenClipScorer(TwoTower):
    """Two-tower scorer on an open_clip model, by its score the bare cosine.

    Args:
        model: the model; it is put into evaluation mode and frozen.
        tokenize: turns prompts into (B, context) ids; None is open_clip's own tokenizer.
    """

    architecture: str
    """Sizes, by open_clip's name of them, where the weights come without ``open_clip_config.json``."""
    range = (-1.0, 1.0)
    temperature = 0.01
    size = "986 M"
    option_type: ClassVar[type[LoadOptions]] = PictureOptions

    def __init__(self, model: CLIP, tokenize: Tokenize | None = None) -> None:
        """See the class."""
        super().__init__()
        self.model = model
        self.read = tokenize or open_clip_tokenizer(model)
        self.preprocess = self.transform(picture_side(model))
        self.eval().requires_grad_(False)

    @classmethod
    def transform(cls, side: int) -> Transform:
        """Transform of pictures: OpenAI's unless a scorer says otherwise."""
        return Preprocess(size=side, crop="round")

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a checkpoint file, or a folder with one; ``open_clip_config.json`` in it may change the sizes.

        Raises:
            FileNotFoundError: no weights given or found.
            ValueError: they do not fit key by key, or ask for a tower that would have to be downloaded.
        """
        path = need_weights(cls.name, weights, cls.weights)
        model = load_open_clip(path, cls.architecture)
        return cls(cast_open_clip(model, dtype)).to(device)

    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar; used in training only."""
        out: Tensor = self.model.logit_scale.float().exp()
        return out

    def image_features(self, pixels: Tensor) -> Tensor:
        """See TwoTower."""
        dtype = next(self.model.visual.parameters()).dtype
        return F.normalize(self.model.encode_image(pixels.to(dtype)).float(), dim=-1)

    def token_features(self, ids: Tensor) -> Tensor:
        """See TwoTower."""
        return F.normalize(self.model.encode_text(ids).float(), dim=-1)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """See TwoTower; padded with 0."""
        refuse_special(prompts, SPECIAL)
        return self.read(list(prompts)).to(self.device)

    def text_weights(self) -> list[Tensor]:
        """See TwoTower."""
        return [p for name, p in self.model.named_parameters() if not name.startswith("visual.")]

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save weights and sizes as a folder that ``load`` and open_clip read.

        ``dtype`` is that of the file only. Every file is written beside and then moved into place.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in self.model.state_dict().items()}
            save_file(state, Path(name) / FILES[0], metadata={"format": "pt"})
            (Path(name) / CONFIG).write_text(
                json.dumps({"model_cfg": model_sizes(self.model)}, indent=2) + "\n"
            )
            for file in (CONFIG, FILES[0]):
                os.replace(Path(name) / file, folder / file)


def load_open_clip(path: Path, architecture: str) -> CLIP:
    """Build an open_clip model from local weights, strictly, in the precision of the file.

    Args:
        path: a file in the layout of open_clip, OpenAI or transformers, or a folder of one.
        architecture: open_clip's name of the sizes; ``open_clip_config.json`` in the folder goes before it.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: they do not fit; or the sizes name towers of other libraries.
    """
    from open_clip import CLIP

    sizes = _sizes(path, architecture)
    files = [path / name for name in FILES if path.is_dir() and (path / name).is_file()]
    file = files[0] if files else path
    # OpenAI's checkpoints carry three numbers besides the weights.
    ignore = ["input_resolution", "context_length", "vocab_size"]
    model = build(lambda: CLIP(**sizes), to_open_clip(read_state(file)), where=file, ignore=ignore)
    n = model.context_length
    model.attn_mask = torch.full((n, n), float("-inf")).triu(1)
    model.sizes = sizes
    return model


def cast_open_clip(model: CLIP, dtype: torch.dtype) -> CLIP:
    """Cast the weights; logit_scale stays float32 (exp() would turn its rounding into 1 % of the scale)."""
    scale = model.logit_scale.detach().float()
    model.to(dtype=dtype)
    model.logit_scale.data = scale
    return model


def open_clip_tokenizer(model: CLIP) -> Tokenize:
    """open_clip's tokenizer at the model's context length; its vocabulary comes with the package.

    Raises:
        ValueError: the model knows fewer tokens.
    """
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer(context_length=model.context_length)
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model knows {model.vocab_size} only"
        )
    return cast(Tokenize, tokenizer)


def picture_side(model: CLIP) -> int:
    """Side of the pictures that the vision tower takes."""
    side = model.visual.image_size
    return int(side[0] if isinstance(side, tuple) else side)


def model_sizes(model: CLIP) -> dict[str, Any]:
    """Sizes a model was built with.

    Raises:
        ValueError: it was not built here and does not carry them.
    """
    sizes = getattr(model, "sizes", None)
    if sizes is None:
        raise ValueError("the model was built without load_open_clip; set model.sizes to its configuration")
    return cast(dict[str, Any], sizes)


def _sizes(path: Path, architecture: str) -> dict[str, Any]:
    import open_clip

    file = path / CONFIG
    found: Mapping[str, Any] | None = open_clip.get_model_config(architecture)
    where = f"architecture {architecture!r}"
    if path.is_dir() and file.is_file():
        found, where = json.loads(file.read_text()).get("model_cfg"), str(file)
    if found is None:
        raise ValueError(
            f"{where} gives no sizes; a model_cfg with embed_dim, vision_cfg and text_cfg is needed"
        )
    text, vision = found.get("text_cfg", {}), found.get("vision_cfg", {})
    if found.get("custom_text") or "hf_model_name" in text or "timm_model_name" in vision:
        raise ValueError(
            f"{where} has towers of other libraries; only open_clip's own ViT towers are supported"
        )
    return dict(found)
