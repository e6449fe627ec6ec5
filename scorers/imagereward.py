"""ImageReward: a BLIP picture tower, a BERT that reads the prompt while looking at it, and one number."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.blip import BlipRegressor, BlipSizes, load_blip, published
from scorers.hub import HubFiles
from scorers.load_options import LoadOptions, PictureOptions
from scorers.loading import need_folder
from scorers.preprocess import Preprocess
from scorers.texts import refuse_special

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PUBLISHED = BlipSizes(mean=0.16717362830052426, std=1.0333394966054072)
"""Sizes of the published model, with the mean and deviation of its raw rewards on its own metric set."""
LONGEST_PROMPT = 35
"""Tokens of a prompt that are read, with [CLS] and [SEP]; the rest is cut off."""


@catalogue.register("imagereward")
class ImageReward(ScorerBase):
    """Reward (raw - mean) / std of the prompt's [CLS] token after cross-attention to the picture.

    The towers run in the precision they are in, the MLP in float32. Differences of scores are logits.

    Args:
        blip: the network; it is put into evaluation mode and frozen.
        tokenizer: BERT's, uncased.
        sizes: of the network, with mean and deviation.
    """

    name = "imagereward"
    licence = "Apache-2.0"
    citation = (
        "Xu et al., ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation, "
        "2023, arXiv:2304.05977"
    )
    weights = (
        "folder of ImageReward.pt, med_config.json (THUDM/ImageReward) and bert-base-uncased's vocab.txt"
    )
    size = "478 M"
    hub: ClassVar[tuple[HubFiles, ...]] = (
        HubFiles("THUDM/ImageReward", ("ImageReward.pt", "med_config.json")),
        HubFiles("google-bert/bert-base-uncased", ("vocab.txt",)),
    )
    option_type: ClassVar[type[LoadOptions]] = PictureOptions
    default_sizes = PUBLISHED
    """What a folder's own files do not say."""
    preprocess: Preprocess

    def __init__(self, blip: BlipRegressor, tokenizer: PreTrainedTokenizerBase, sizes: BlipSizes) -> None:
        """See the class."""
        super().__init__()
        self.blip = blip
        self.tokenizer = tokenizer
        self.sizes = sizes
        self.preprocess = Preprocess(size=sizes.image_size)
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a folder with the weights, their sizes and the tokenizer.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: the weights do not fit the sizes key by key, or the tokenizer has too many tokens.
        """
        folder = need_folder(cls.name, weights, cls.weights)
        sizes = BlipSizes.read(folder, cls.default_sizes)
        blip = load_blip(folder, sizes)
        for tower in (blip.vision, blip.text):
            tower.to(dtype=dtype)
        return cls(blip, _tokenizer(cls.name, folder, sizes.vocab_size), sizes).to(device)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32, differentiable in the pictures.

        Raises:
            ValueError: wrong shapes, not one prompt per picture, or a special token in a prompt.
        """
        check_batch(x01, prompts)
        ids, mask = self.tokenize(prompts)
        return self.reward(self.preprocess(x01), ids, mask)

    def reward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B,) float32 of preprocessed pictures (B, 3, S, S), token ids and their mask (B, L)."""
        out: Tensor = self.blip(pixels, ids, mask)
        return (out - self.sizes.mean) / self.sizes.std

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, L) token ids and mask, cut at 35 tokens, padded to the longest (padding has no influence)."""
        refuse_special(prompts, self.tokenizer.all_special_tokens)
        found = self.tokenizer(
            list(prompts), padding="longest", truncation=True, max_length=LONGEST_PROMPT, return_tensors="pt"
        )
        ids, mask = (torch.as_tensor(found[key]).to(self.device) for key in ("input_ids", "attention_mask"))
        return ids, mask

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save weights under their published names, sizes and tokenizer, for ``load`` to read.

        ``dtype`` is that of the file only. Every file is moved into place when it is whole, weights last.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            state = {published(k): v.detach().cpu().to(dtype) for k, v in self.blip.state_dict().items()}
            state = {k: v.contiguous() for k, v in state.items()}
            save_file(state, Path(name) / "model.safetensors", metadata={"format": "pt"})
            self.tokenizer.save_pretrained(name)
            self.sizes.write(Path(name))
            for file in sorted(Path(name).iterdir(), key=lambda f: f.suffix == ".safetensors"):
                os.replace(file, folder / file.name)


def _tokenizer(name: str, folder: Path, words: int) -> PreTrainedTokenizerBase:
    from transformers import BertTokenizer

    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
        raise FileNotFoundError(
            f"scorer {name!r}: {folder} holds no tokenizer; put vocab.txt of bert-base-uncased into it"
        )
    tokenizer: PreTrainedTokenizerBase = BertTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > words:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens but the model knows {words} only"
        )
    return tokenizer
