"""HPSv3: Qwen2-VL reads picture and prompt; a small head on one added token gives mean and deviation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from scorers import catalogue
from scorers.base import ScorerBase, check_batch
from scorers.hub import HubFiles
from scorers.load_options import LoadOptions, PictureOptions
from scorers.loading import need_folder, read_state
from scorers.protocol import Details, PairOutput, ScoreOutput
from scorers.qwen import QwenPixels
from scorers.qwen_chat import IMAGE, Tokens, check_prompts, conversation, load_tokenizer, template, tokenize
from scorers.qwen_lm import QWEN_TOKENIZER
from scorers.qwen_model import OLD_NAMES, build_qwen, config_of, rename

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REWARD = "<|Reward|>"
"""Added token at which the head reads the hidden state."""
HEAD_HIDDEN = 1024


class HPSv3Network(nn.Module):
    """Qwen2-VL without its word head, and the reward head in float32.

    Positions are 0, 1, 2, ... on all three rotary axes, also over the picture's tokens: the published model
    was trained so, and Qwen2-VL's own picture positions give other scores.
    """

    def __init__(self, config: Any) -> None:
        """Build with random weights from a Qwen2VLConfig."""
        from transformers import Qwen2VLModel

        super().__init__()
        self.model = Qwen2VLModel(config)
        self.rm_head = nn.Sequential(
            nn.Linear(config.text_config.hidden_size, HEAD_HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.05),
            nn.Linear(HEAD_HIDDEN, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        )

    def forward(self, tokens: Tokens, patches: Tensor, grid: Tensor, reward: int) -> Tensor:
        """(B, 2) mu and log sigma, float32, at the token ``reward`` of each row.

        Args:
            tokens: ids and mask (B, L), padded on the right.
            patches: of all pictures, see ``QwenPixels.patches``.
            grid: (B, 3) grid of each picture.
            reward: id of the reward token; each row has it once.
        """
        embed = self.model.get_input_embeddings()
        words: Tensor = embed(tokens.ids)  # (B, L, D)
        seen = self.model.get_image_features(patches.to(words.dtype), grid).pooler_output
        at = (tokens.ids == self.model.config.image_token_id)[..., None].expand_as(words)
        words = words.masked_scatter(at, torch.cat(list(seen)).to(words.dtype))
        out = self.model.language_model(inputs_embeds=words, attention_mask=tokens.mask, use_cache=False)
        hidden = out.last_hidden_state[tokens.ids == reward]  # (B, D)
        with torch.autocast(hidden.device.type, enabled=False):
            result: Tensor = self.rm_head(hidden.float())
        return result


@catalogue.register("hpsv3")
class HPSv3(ScorerBase):
    """Score mu of a picture for a prompt, with the model's own uncertainty sigma as ``std``.

    Args:
        network: see HPSv3Network; it is put into evaluation mode and frozen.
        tokenizer: Qwen2-VL's, with the reward token.
        preprocess: transform of the pictures.
    """

    name = "hpsv3"
    licence = "MIT"
    citation = "Ma et al., HPSv3: Towards Wide-Spectrum Human Preference Score, 2025, arXiv:2508.03789"
    weights = (
        "folder of HPSv3.safetensors (MizzenAI/HPSv3) with config.json and tokenizer of "
        "Qwen/Qwen2-VL-7B-Instruct"
    )
    size = "8.3 B"
    hub = (
        HubFiles("MizzenAI/HPSv3", ("HPSv3.safetensors",)),
        HubFiles("Qwen/Qwen2-VL-7B-Instruct", ("config.json", *QWEN_TOKENIZER)),
    )
    option_type: ClassVar[type[LoadOptions]] = PictureOptions
    preprocess: QwenPixels

    def __init__(
        self,
        network: HPSv3Network,
        tokenizer: PreTrainedTokenizerBase,
        preprocess: QwenPixels | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        self.network = network
        self.tokenizer = tokenizer
        self.preprocess = preprocess or QwenPixels()
        self.reward_id = cast(int, tokenizer.convert_tokens_to_ids(REWARD))
        self.eval().requires_grad_(False)

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load a folder with weights (old or new key names), config.json and tokenizer.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: the weights do not fit the configuration key by key, or the tokenizer not the model.
        """
        folder = need_folder(cls.name, weights, cls.weights)
        state = rename(read_state(folder))
        words = _words(state, folder)
        config = config_of(folder, words)
        network = build_qwen(
            lambda: HPSv3Network(config), state, where=folder, dtype=dtype, ignore=("lm_head.weight",)
        )
        network.rm_head.float()
        tokenizer = load_tokenizer(cls.name, folder, words, [IMAGE])
        tokenizer.add_tokens([REWARD], special_tokens=True)  # changes nothing where the file has it already
        if len(tokenizer) > words:
            raise ValueError(f"{folder}: the model has no row for {REWARD}; are these weights of HPSv3?")
        pixels = QwenPixels(
            patch=config.vision_config.patch_size, merge=config.vision_config.spatial_merge_size
        )
        return cls(network, tokenizer, pixels).to(device)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score pictures (B, 3, H, W) in [0, 1] for B prompts: (B,) float32 mu, differentiable in pictures.

        Raises:
            ValueError: wrong shapes, not one prompt per picture, or a special token in a prompt.
        """
        return self.mu_log_sigma(x01, prompts)[:, 0]

    def mu_log_sigma(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 2) mu and log sigma, for ``hpsv3_loss``; arguments as for ``score_tensor``."""
        check_batch(x01, prompts)
        check_prompts(self.tokenizer, prompts)
        patches, grid = self.preprocess.patches(x01)
        count = self.preprocess.tokens(*x01.shape[-2:])
        texts = [conversation(question(prompt), [count]) for prompt in prompts]
        tokens = tokenize(self.tokenizer, texts, left=False, device=x01.device)
        out: Tensor = self.network(tokens, patches, grid, self.reward_id)
        return out

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """Mu, and sigma as ``std``."""
        out = self.mu_log_sigma(x01, prompts)
        return Details(score=out[:, 0], std=out[:, 1].exp())

    def pair(self, a: ScoreOutput, b: ScoreOutput) -> PairOutput:
        """Compare by both sides' uncertainty: prob = Phi((mu_a - mu_b) / sqrt(sigma_a^2 + sigma_b^2))."""
        found = super().pair(a, b)
        if a.std is None or b.std is None:
            raise ValueError("comparing by uncertainty needs the deviations of both sides")
        found.prob = torch.special.ndtr(found.logit / torch.hypot(a.std, b.std))
        if self.tie_threshold is not None:
            found.tie_prob = ((2 * found.prob - 1).abs() <= self.tie_threshold).float()
        return found

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Save weights under their published (old) key names, configuration and tokenizer, for ``load``.

        ``dtype`` is that of the language and vision weights in the file; the head stays in float32. Every
        file is moved into place when it is whole, weights last.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
            state = {
                _old(k): v.detach().cpu().to(v.dtype if k.startswith("rm_head.") else dtype).contiguous()
                for k, v in self.network.state_dict().items()
            }
            save_file(state, Path(name) / "HPSv3.safetensors", metadata={"format": "pt"})
            self.network.model.config.save_pretrained(name)
            self.tokenizer.save_pretrained(name)
            for file in sorted(Path(name).iterdir(), key=lambda f: f.suffix == ".safetensors"):
                os.replace(file, folder / file.name)


def question(prompt: str) -> str:
    """HPSv3's instruction with the prompt, and the request that ends in the reward token."""
    return template("hpsv3_instruction").replace("{text_prompt}", prompt) + template("hpsv3_suffix")


def _words(state: Mapping[str, Tensor], folder: Path) -> int:
    key = "model.language_model.embed_tokens.weight"
    if key not in state:
        raise ValueError(f"{folder} does not hold HPSv3: there is no {key} (or model.embed_tokens.weight)")
    return len(state[key])


def _old(key: str) -> str:
    for old, new in OLD_NAMES:
        if key.startswith(new):
            return old + key.removeprefix(new)
    return key
