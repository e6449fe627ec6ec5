"""Prompts as a diffusion model reads them: tokens for its attention, and one pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scorers.texts import TextCache, refuse_special

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Form = Literal["sd", "sdxl", "sd3"]
"""How the encoders' outputs are put together: as Stable Diffusion 1 and 2, SDXL, or 3 does it."""
ENCODER_COUNTS: dict[Form, tuple[int, ...]] = {"sd": (1,), "sdxl": (2,), "sd3": (2, 3)}
REMEMBERED = 256
"""Prompts of frozen encoders that are kept; one of Stable Diffusion 1.5 takes 0.24 MB."""


@dataclass(frozen=True)
class Texts:
    """What B prompts are to a denoiser."""

    tokens: Tensor
    """(B, L, D) for attention."""
    pooled: Tensor
    """(B, P)."""

    def repeat(self, n: int) -> Texts:
        """One prompt for n latents."""
        return Texts(self.tokens.expand(n, -1, -1), self.pooled.expand(n, -1))

    def join(self, other: Texts) -> Texts:
        """These prompts, then the others."""
        return Texts(
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.pooled, other.pooled]),
        )


class PromptEncoders(nn.Module):
    """One to three text encoders with their tokenizers, as the pipelines of diffusers put them together.

    ``sd``: the last layer of CLIP, pooled at the end token. ``sdxl``: the last but one of both CLIP towers,
    pooled the projected second. ``sd3``: the last but one of both, filled up with zeros to the width of T5,
    then T5 if there is one; pooled both projected. Prompts of frozen encoders are remembered.

    Args:
        encoders: of transformers, in the order of the pipeline: CLIPTextModel, CLIPTextModelWithProjection,
            T5EncoderModel.
        tokenizers: one for each.
        form: see above.
        t5_length: how many tokens T5 reads.
    """

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        tokenizers: Sequence[PreTrainedTokenizerBase],
        form: Form,
        t5_length: int = 77,
    ) -> None:
        """See the class.

        Raises:
            ValueError: not as many encoders as the form has, or not a tokenizer for each.
        """
        super().__init__()
        if len(encoders) not in ENCODER_COUNTS[form] or len(tokenizers) != len(encoders):
            raise ValueError(
                f"{len(encoders)} text encoders and {len(tokenizers)} tokenizers for the form {form}; "
                f"it has {' or '.join(map(str, ENCODER_COUNTS[form]))} of each"
            )
        self.encoders = nn.ModuleList(encoders)
        self.tokenizers = list(tokenizers)
        self.form: Form = form
        self.t5_length = t5_length
        self.memory = TextCache(REMEMBERED)

    @property
    def pooled_width(self) -> int:
        """Width P of the pooled features."""
        configs: list[Any] = [encoder.config for encoder in self.encoders[:2]]
        if self.form == "sd":
            own = type(self.encoders[0]).__name__ == "CLIPTextModelWithProjection"
            return int(configs[0].projection_dim if own else configs[0].hidden_size)
        used = configs[1:] if self.form == "sdxl" else configs
        return sum(int(config.projection_dim) for config in used)

    def forward(self, prompts: Sequence[str]) -> Texts:
        """Encode B prompts; each once, however often it stands there.

        Raises:
            ValueError: a prompt spells out a special token.
        """
        once = list(dict.fromkeys(prompts))
        rows = torch.tensor([once.index(p) for p in prompts])
        flat = self.memory.features(once, self._flat, self.parameters())  # (n, L * D + P)
        flat = flat[rows.to(flat.device)]
        tokens, pooled = flat[:, : -self.pooled_width], flat[:, -self.pooled_width :]
        return Texts(tokens.unflatten(1, (self._length(), -1)), pooled)

    def _flat(self, prompts: list[str]) -> Tensor:
        """(n, L * D + P) tokens and pooled features in one row, so that one memory holds both."""
        texts = self.encode(prompts)
        return torch.cat([texts.tokens.flatten(1), texts.pooled], 1)

    def _length(self) -> int:
        clip = int(self.tokenizers[0].model_max_length)
        return clip + (self.t5_length if len(self.encoders) == 3 else 0)

    def encode(self, prompts: Sequence[str]) -> Texts:
        """Encode B prompts without looking into the memory."""
        for tokenizer in self.tokenizers:
            refuse_special(prompts, tokenizer.all_special_tokens)
        clips = [self._clip(i, prompts) for i in range(min(2, len(self.encoders)))]
        if self.form == "sd":
            return Texts(*clips[0])
        tokens = torch.cat([hidden for hidden, _ in clips], 2)
        if self.form == "sdxl":
            return Texts(tokens, clips[1][1])
        pooled = torch.cat([pooled for _, pooled in clips], 1)
        return Texts(self._with_t5(tokens, prompts), pooled)

    def _clip(self, i: int, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(B, L, D) hidden states and (B, P) pooled features of one CLIP tower."""
        ids = self._ids(i, prompts, int(self.tokenizers[i].model_max_length))
        out = self.encoders[i](ids, output_hidden_states=True)
        hidden = out.last_hidden_state if self.form == "sd" else out.hidden_states[-2]
        projected = type(self.encoders[i]).__name__ == "CLIPTextModelWithProjection"
        return hidden, out.text_embeds if projected else out.pooler_output

    def _with_t5(self, tokens: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(self.encoders) < 3:
            return tokens
        t5 = self.encoders[2](self._ids(2, prompts, self.t5_length))[0]
        return torch.cat([F.pad(tokens, (0, t5.shape[2] - tokens.shape[2])), t5], 1)

    def _ids(self, i: int, prompts: Sequence[str], length: int) -> Tensor:
        found = self.tokenizers[i](
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return torch.as_tensor(found["input_ids"]).to(next(self.encoders[i].parameters()).device)
