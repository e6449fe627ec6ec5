"""Latent reward models: how much people will like what noisy latents become, without decoding them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn

from scorers.latent import check_latents, latent_scorers
from scorers.loading import build
from scorers.lrm_head import CosineHead, DinaHead
from scorers.lrm_text import PromptEncoders
from scorers.lrm_trunk import MMDiTTrunk, Process, Trunk, UNetTrunk, form_of, trunk_of, unused_keys
from scorers.protocol import Kind, Need, Space

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Head = CosineHead | DinaHead


@dataclass(frozen=True, kw_only=True)
class LrmOptions:
    """Shape of a latent reward model; the defaults are LPO's."""

    taps: tuple[int, ...] = ()
    """Where the trunk is read: residuals of a UNet's down path, or blocks of a transformer from 1. Empty
    takes LPO's: the last residual of each stage, or three quarters of the blocks. DiNa-LRM reads 4, 8 and 12
    of 24."""
    head: Literal["cosine", "dina"] = "cosine"
    """LPO's cosine with the prompt, or DiNa-LRM's queries."""
    features: int = 0
    """Width of the head; 0 takes that of the pooled prompt."""
    guidance: float = 7.5
    """cosine: how far the deepest feature is guided towards the prompt; 1 is not, and half the work."""
    multi_scale: bool = False
    """cosine: guide the features of all depths."""
    queries: int = 4
    """dina: how many queries look."""
    heads: int = 4
    """dina: heads of the attention."""
    t5_length: int = 77
    """Tokens that T5 reads, where there is one."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ValueError: an unknown head, a negative width, or a count below 1.
        """
        if self.head not in ("cosine", "dina"):
            raise ValueError(f"head must be 'cosine' or 'dina', not {self.head!r}")
        if self.features < 0 or min(self.queries, self.heads, self.t5_length) < 1:
            raise ValueError(f"features >= 0 and queries, heads and t5_length >= 1 are needed, got {self}")


@latent_scorers.register("lrm")
class Lrm(nn.Module):
    """Latent reward model of LPO (arXiv:2502.01051, section 4): half a denoiser, the prompt, and a head.

    Trunk and text encoders run in the precision they are in, the head in float32. It is bound to the latents
    of one VAE and to one kind of noise; ``check_policy`` refuses others.

    Args:
        trunk: first half of a denoiser.
        texts: text encoders of the same model.
        head: makes the score.
        options: what they were made with.
        vae_id: digest of the VAE whose latents it knows.
    """

    name = "lrm"
    version = "1"
    dims: tuple[str, ...] = ("preference",)
    range: tuple[float, float] = (-100.0, 100.0)
    higher_better = True
    needs: frozenset[Need] = frozenset({"prompt", "timestep"})
    kind: Kind = "pointwise"
    space: Space = "latent"
    differentiable = True
    licence = "Apache-2.0 (own code); that of the diffusion model it was made from"
    citation = "Zhang et al., Diffusion Model as a Noise-Aware Latent Reward Model, 2025, arXiv:2502.01051"
    weights = "folder of your own training with config.json, model.safetensors and tokenizer/"
    size = "of half a denoiser and its text encoders"

    def __init__(
        self, trunk: Trunk, texts: PromptEncoders, head: Head, options: LrmOptions, vae_id: str
    ) -> None:
        """See the class.

        Raises:
            ValueError: no ``vae_id``.
        """
        super().__init__()
        if not vae_id:
            raise ValueError(
                "vae_id is empty; give the digest of the VAE, policy.encoder_id('vae') in diffalign"
            )
        self.trunk, self.texts, self.head = trunk, texts, head
        self.options, self.vae_id = options, vae_id
        self.range = head.range
        self.eval().requires_grad_(False)

    @classmethod
    def create(
        cls,
        denoiser: nn.Module,
        text_encoders: Sequence[nn.Module],
        tokenizers: Sequence[PreTrainedTokenizerBase],
        *,
        vae_id: str,
        options: LrmOptions | None = None,
        text_projection: Tensor | None = None,
        seed: int = 0,
    ) -> Self:
        """A new model from the denoiser whose latents it will judge; nothing of it is changed or shared.

        All weights are copied in float32, LoRA that was put into the denoiser aside. The head starts anew.

        Args:
            denoiser: a UNet2DConditionModel or an SD3Transformer2DModel.
            text_encoders: those of its pipeline, in order.
            tokenizers: one for each.
            vae_id: digest of the VAE, ``policy.encoder_id("vae")`` in diffalign.
            options: shape of the model.
            text_projection: (D, P) start of the prompt's projection, for LRM-1.5 that of OpenAI's CLIP-L,
                which the pipeline lacks; None starts at the identity.
            seed: of the head.

        Raises:
            TypeError: another kind of denoiser.
            ValueError: options or text encoders that do not fit the denoiser, or no ``vae_id``.
        """
        options, (kind, is_sdxl) = options or LrmOptions(), trunk_of(denoiser)
        trunk = copied_trunk(denoiser, kind, options.taps)
        copies = [copied(encoder) for encoder in text_encoders]
        texts = PromptEncoders(copies, tokenizers, form_of(kind, is_sdxl), options.t5_length)
        width = options.features or (texts.pooled_width if text_projection is None else len(text_projection))
        options = replace(options, taps=trunk.taps, features=width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = make_head(trunk.widths, texts.pooled_width, options)
        if text_projection is not None:
            _start_text(head, text_projection)
        return cls(trunk, texts, head, options, vae_id)

    @classmethod
    def of_pipeline(
        cls,
        pipeline: Any,
        *,
        vae_id: str,
        options: LrmOptions | None = None,
        text_projection: Tensor | None = None,
        seed: int = 0,
    ) -> Self:
        """The same from a pipeline of diffusers: StableDiffusion, StableDiffusionXL or StableDiffusion3."""
        parts: Mapping[str, Any] = pipeline.components
        names = [f"text_encoder{end}" for end in ("", "_2", "_3")]
        used = [name for name in names if parts.get(name) is not None]
        return cls.create(
            parts["unet"] if "unet" in parts else parts["transformer"],
            [parts[name] for name in used],
            [parts[name.replace("text_encoder", "tokenizer")] for name in used],
            vae_id=vae_id, options=options, text_projection=text_projection, seed=seed,
        )  # fmt: skip

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """Load what ``save`` wrote; the head stays in float32.

        Raises:
            FileNotFoundError: no folder given or found, or a file is missing in it.
            ValueError: weights that do not fit key by key, or the folder of another scorer.
        """
        from scorers.lrm_files import read_lrm

        trunk, texts, head, options, vae_id = read_lrm(cls.name, weights)
        trunk.to(dtype)
        texts.to(dtype)
        return cls(trunk, texts, head, options, vae_id).to(device)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write ``config.json``, ``model.safetensors`` and the tokenizers for ``load``; the weights last.

        ``dtype`` is that of trunk and text encoders in the file; the head stays in float32.

        Raises:
            FileExistsError: the folder holds the config.json of something else.
        """
        from scorers.lrm_files import write_lrm

        write_lrm(self, Path(folder), dtype)

    @property
    def process(self) -> Process:
        """Kind of noise that the trunk knows."""
        return self.trunk.process

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.head.parameters()).device

    def check_policy(self, vae_id: str, process: Process) -> None:
        """See that a policy's latents are those that this model knows.

        Args:
            vae_id: digest of the policy's VAE.
            process: its kind of noise.

        Raises:
            ValueError: another VAE, or another process.
        """
        if vae_id != self.vae_id:
            raise ValueError(
                f"this is a latent reward of another VAE: it knows the latents of {self.vae_id[:12]}..., and "
                f"the policy's VAE is {vae_id[:12]}...; train one on this VAE, or use a scorer of pictures"
            )
        if process != self.process:
            raise ValueError(
                f"this latent reward knows noise of a {self.process} process, and the policy's is {process}; "
                "train one from a denoiser of the policy's own kind"
            )

    def score_latents(self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score B noisy latents: (B,) float32, differentiable in the latents.

        Args:
            latents: (B, C, h, w), in the scale in which the denoiser sees them.
            timesteps: (B,) times as the denoiser takes them: the index, or 1000 sigma of a flow.
            prompts: B prompts.

        Raises:
            ValueError: wrong shapes, other channels than the trunk has, or a special token in a prompt.
        """
        check_latents(latents, timesteps, prompts)
        if latents.shape[1] != self.trunk.channels:
            raise ValueError(
                f"latents have {latents.shape[1]} channels, and this model was made for "
                f"{self.trunk.channels}: they come from another VAE"
            )
        texts, n = self.texts(prompts), len(latents)
        if not self.head.needs_blank:
            maps = self.trunk.maps(latents, timesteps, texts)
            return self._scored(maps, None, timesteps, texts.pooled)
        both = texts.join(self.texts([""]).repeat(n))
        maps = self.trunk.maps(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), both)
        return self._scored([m[:n] for m in maps], [m[n:] for m in maps], timesteps, texts.pooled)

    def _scored(
        self, maps: Sequence[Tensor], blank: Sequence[Tensor] | None, times: Tensor, text: Tensor
    ) -> Tensor:
        out: Tensor = self.head(maps, blank, times, text)
        return out


def make_head(widths: Sequence[int], text: int, options: LrmOptions) -> Head:
    """A new head for maps of these widths and pooled prompts of the width ``text``."""
    if options.head == "dina":
        return DinaHead(widths, text, options.features, options.queries, options.heads)
    return CosineHead(widths, text, options.features, options.guidance, options.multi_scale)


def copied_trunk(denoiser: Any, kind: type[UNetTrunk] | type[MMDiTTrunk], taps: Sequence[int]) -> Trunk:
    """Trunk with a copy of a denoiser's weights, float32."""
    config, taps = plain_config(denoiser), tuple(taps) or kind.usual_taps(denoiser)
    depth = len(denoiser.transformer_blocks) if kind is MMDiTTrunk else 0
    state = {f"net.{key}": value for key, value in plain_state(denoiser).items()}
    return build(
        lambda: kind(type(denoiser).from_config(config), taps),
        state,
        where=Path(type(denoiser).__name__),
        ignore=unused_keys(kind, taps, depth),
    )


def copied(encoder: Any) -> nn.Module:
    """A text encoder with a copy of its weights, float32."""
    from scorers.clip_hf import restore_positions

    made: nn.Module = build(
        lambda: type(encoder)(encoder.config), plain_state(encoder), where=Path(type(encoder).__name__)
    )
    restore_positions(made)
    return made


def plain_config(denoiser: Any) -> dict[str, Any]:
    """Configuration of a network of diffusers, without what is said of the file it came from."""
    return {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights in float32 by their names without LoRA, whose own weights are left out."""
    return {
        key.replace(".base_layer.", "."): value.detach().float().cpu().clone()
        for key, value in module.state_dict().items()
        if ".lora_" not in key
    }


@torch.no_grad()
def _start_text(head: Head, projection: Tensor) -> None:
    """Put given weights into the prompt's projection."""
    if not isinstance(head, CosineHead) or projection.shape != head.text.weight.shape:
        wanted = tuple(head.text.weight.shape) if isinstance(head, CosineHead) else "none (head 'dina')"
        raise ValueError(f"text_projection is {tuple(projection.shape)}, and this head takes {wanted}")
    head.text.weight.copy_(projection)
