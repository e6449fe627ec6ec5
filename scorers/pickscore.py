"""PickScore, and every CLIP-type scorer of its form: exp(logit_scale) * cos(picture, prompt)."""

from __future__ import annotations

import json
import os
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from scorers import WEIGHTS_VARIABLE, catalogue
from scorers.base import ScorerBase, check_batch
from scorers.preprocess import Preprocess

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase
    from transformers.modeling_outputs import BaseModelOutputWithPooling

CACHED_PROMPTS = 4096


@catalogue.register("pickscore")
class PickScore(ScorerBase):
    """Two-tower scorer on a transformers CLIPModel.

    The towers run in the precision they are in; features are normalised and multiplied in float32. Text
    features of frozen towers are remembered (the 4096 prompts used last).

    Args:
        clip: the model; it is put into evaluation mode and frozen.
        tokenizer: its tokenizer; the longest prompt is the shorter of both their limits.
        preprocess: transform of the pictures; None is CLIP's at the size of the vision tower.
    """

    name = "pickscore"
    range = (-100.0, 100.0)
    licence = "code MIT; no licence is stated for the published weights"
    citation = "Kirstain et al., Pick-a-Pic: An Open Dataset of User Preferences, 2023, arXiv:2305.01569"

    def __init__(
        self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, preprocess: Preprocess | None = None
    ) -> None:
        """See the class."""
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.preprocess = preprocess or Preprocess(size=_limits(clip).side)
        self._texts: OrderedDict[str, Tensor] = OrderedDict()
        self._texts_of = -1
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> PickScore:
        """Load a folder that holds a saved CLIPModel and its tokenizer.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: the weights do not fit the configuration key by key.
        """
        from transformers import CLIPTokenizer

        folder = _folder(cls.name, weights)
        clip = _load_clip(folder)
        _cast(clip, dtype)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        words = _limits(clip).words
        if len(tokenizer) > words:
            raise ValueError(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens but the model knows {words} only"
            )
        return cls(clip, tokenizer, Preprocess.load(folder, _limits(clip).side)).to(device)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable in the pictures.

        Raises:
            ValueError: wrong shapes, or not one prompt per picture.
        """
        check_batch(x01, prompts)
        return self.scale() * (self.encode_images(x01) * self.encode_prompts(prompts)).sum(1)

    def scale(self) -> Tensor:
        """exp(logit_scale), a scalar, about 100 for trained models."""
        out: Tensor = self.clip.logit_scale.float().exp()
        return out

    def encode_images(self, x01: Tensor) -> Tensor:
        """Unit features (B, D) float32 of pictures (B, 3, H, W) in [0, 1]."""
        return self.image_features(self.preprocess(x01))

    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit features (B, D) float32 of preprocessed pictures (B, 3, size, size)."""
        pixels = pixels.to(self.clip.visual_projection.weight.dtype)
        return _unit(self.clip.get_image_features(pixel_values=pixels))

    def token_features(self, ids: Tensor) -> Tensor:
        """Unit features (B, D) float32 of token ids (B, L); padding behind the end token has no influence."""
        return _unit(self.clip.get_text_features(input_ids=ids))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """(B, L) token ids, padded to the longest, cut at the model's limit with the end token kept."""
        limit = min(self.tokenizer.model_max_length, _limits(self.clip).tokens)
        found = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        return torch.as_tensor(found["input_ids"]).to(self.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Unit features (B, D) float32 of B prompts; remembered while the text tower is frozen."""
        parts = (self.clip.text_model, self.clip.text_projection)
        if any(p.requires_grad for part in parts for p in part.parameters()):
            return self.token_features(self.tokenize(prompts))
        self._forget_if_changed()
        wanted = list(dict.fromkeys(prompts))
        missing = [p for p in wanted if p not in self._texts]
        found = {p: self._texts[p] for p in wanted if p in self._texts}
        if missing:
            # Plain tensors, not those of an inference_mode around us, so that a later backward may use them.
            with torch.inference_mode(False), torch.no_grad():
                found |= dict(zip(missing, self.token_features(self.tokenize(missing)), strict=True))
        self._remember(found)
        return torch.stack([found[p] for p in prompts])

    def _remember(self, found: dict[str, Tensor]) -> None:
        for prompt, feature in found.items():
            self._texts[prompt] = feature
            self._texts.move_to_end(prompt)
        while len(self._texts) > CACHED_PROMPTS:
            self._texts.popitem(last=False)

    def _forget_if_changed(self) -> None:
        """Drop the remembered texts if a weight was written since (tensors count their in-place changes)."""
        parameters = [*self.clip.text_model.parameters(), self.clip.text_projection.weight]
        state = hash(tuple((p.data_ptr(), p._version) for p in parameters))
        if state != self._texts_of:
            self._texts.clear()
        self._texts_of = state

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save model, tokenizer and transform for ``scorers.load("pickscore", weights=folder)``.

        ``dtype`` is that of the file only: half precision halves it and moves scores by about 1e-3.
        Every file is written beside and then moved into place, the weights last.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            self.clip.config.save_pretrained(name)
            weights = self.clip.state_dict().items()
            state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in weights}
            save_file(state, Path(name) / "model.safetensors", metadata={"format": "pt"})
            self.tokenizer.save_pretrained(name)
            (Path(name) / "preprocessor_config.json").write_text(
                json.dumps(self.preprocess.to_dict(), indent=2) + "\n"
            )
            for file in sorted(Path(name).iterdir(), key=lambda f: f.suffix == ".safetensors"):
                os.replace(file, folder / file.name)


class _Limits(NamedTuple):
    side: int
    tokens: int
    words: int


def _limits(clip: CLIPModel) -> _Limits:
    """Side of the pictures, longest prompt in tokens, and size of the vocabulary."""
    vision: Any = clip.config.vision_config
    text: Any = clip.config.text_config
    return _Limits(vision.image_size, text.max_position_embeddings, text.vocab_size)


def _cast(clip: CLIPModel, dtype: torch.dtype) -> None:
    """Cast the towers. logit_scale stays float32: exp() would turn its rounding into 1 % of the score."""
    for part in (clip.text_model, clip.vision_model, clip.text_projection, clip.visual_projection):
        part.to(dtype=dtype)


def _unit(features: Tensor | BaseModelOutputWithPooling) -> Tensor:
    """Normalise what CLIP's ``get_*_features`` gives: a tensor in transformers 4, an output object in 5."""
    tensor = features if isinstance(features, Tensor) else cast(Tensor, features.pooler_output)
    return F.normalize(tensor.float(), dim=-1)


def _folder(name: str, weights: Path | None) -> Path:
    if weights is None:
        home = os.environ.get(WEIGHTS_VARIABLE)
        looked = f"there is no {Path(home) / name}" if home else f"{WEIGHTS_VARIABLE} is not set"
        raise FileNotFoundError(
            f"scorer {name!r} needs weights: pass weights=FOLDER (a saved CLIPModel with its tokenizer), "
            f"or put them into ${WEIGHTS_VARIABLE}/{name} ({looked}); nothing is downloaded"
        )
    if not (weights / "config.json").is_file():
        raise FileNotFoundError(
            f"scorer {name!r}: {weights} holds no config.json; give the folder of a saved CLIPModel"
        )
    if not any((weights / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"scorer {name!r}: {weights} holds no tokenizer; save the model's tokenizer into the same folder"
        )
    return weights


def _load_clip(folder: Path) -> CLIPModel:
    """Build the CLIPModel of a folder in float32; every key must be there and none may be left over."""
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig.from_pretrained(folder, local_files_only=True)
    # Old checkpoints carry position_ids, which are just 0, 1, 2, ... and no longer saved.
    state = {k: v.float() for k, v in _read_state(folder).items() if not k.endswith("position_ids")}
    with torch.device("meta"):  # no time spent on random weights
        clip = CLIPModel(config)
    try:
        clip.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} are not those of the model in its config.json: {error}"
        ) from error
    for embeddings in (clip.text_model.embeddings, clip.vision_model.embeddings):
        embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1])[None]
    return clip


def _read_state(folder: Path) -> dict[str, Tensor]:
    """Read model.safetensors (in one file or in shards) or pytorch_model.bin, as tensors only."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    single, old = folder / "model.safetensors", folder / "pytorch_model.bin"
    shards = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.is_file()
        else [single.name]
    )
    try:
        if not index.is_file() and not single.is_file() and old.is_file():
            found: dict[str, Tensor] = torch.load(old, map_location="cpu", weights_only=True)
            return found
        return {k: v for shard in shards for k, v in load_file(folder / shard).items()}
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds neither {' nor '.join([*shards, old.name])}") from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"the weights in {folder} are damaged ({error}); copy them again") from error
