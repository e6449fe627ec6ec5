"""The tiny networks of the shapes world: VAE, UNet, MMDiT, text encoders and tokenizers, built from nothing.

Their weights are trained by training/pretrain_shapes.py and ship under samples/shapes; tests build them still
smaller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from diffalign.world.grammar import WORDS

LATENT_CHANNELS = 8
"""Channels of the 8 x 8 latents; with 4 the edges of the shapes stay blurred for long."""
TOKENS = 16
"""Length that CLIP-type prompts are padded to; the longest sentence of the grammar has 14 tokens."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Sizes of one set of tiny networks; the defaults are those of samples/shapes."""

    vae: tuple[int, ...] = (16, 32, 64, 64)
    unet: tuple[int, ...] = (64, 128)
    unet_layers: int = 1
    text: int = 128
    dit_layers: int = 4
    dit_heads: int = 6
    dit_head_dim: int = 32


def build_vae(widths: Widths) -> AutoencoderKL:
    """Autoencoder with f = 8 and 8 channels: (B, 3, 64, 64) in [-1, 1] to latents (B, 8, 8, 8)."""
    levels = len(widths.vae)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=widths.vae,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        force_upcast=False,
    )


def clip_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """Byte-pair tokenizer that knows each word of the world as one token."""
    # Every merge takes a word's ending and the letter before it, so that no word's merge can break another
    # word. (A trained byte-pair model breaks ties at random: its ids differ from process to process.)
    endings = dict.fromkeys((w[i], f"{w[i + 1 :]}</w>") for w in words for i in reversed(range(len(w) - 1)))
    merges = list(endings)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    units = [*letters, *(f"{c}</w>" for c in letters), *("".join(m) for m in merges)]
    tokens = [*dict.fromkeys(units), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=TOKENS)


def t5_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Word-level tokenizer with T5's special tokens (pad 0, end 1, unknown 2)."""
    vocab = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )


def _clip_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )


def build_unet(widths: Widths) -> UNet2DConditionModel:
    """Stable-Diffusion-type UNet for (B, 8, 8, 8) latents with eps prediction."""
    levels = len(widths.unet)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=widths.unet,
        layers_per_block=widths.unet_layers,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=widths.text,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_dit(widths: Widths) -> SD3Transformer2DModel:
    """SD3-type MMDiT for (B, 8, 8, 8) latents with velocity prediction."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=widths.dit_layers,
        attention_head_dim=widths.dit_head_dim,
        num_attention_heads=widths.dit_heads,
        joint_attention_dim=widths.text,
        caption_projection_dim=widths.dit_heads * widths.dit_head_dim,
        pooled_projection_dim=widths.text,
        pos_embed_max_size=16,
    )


def build_sd_pipeline(vae: AutoencoderKL, widths: Widths | None = None) -> StableDiffusionPipeline:
    """Untrained StableDiffusionPipeline of the shapes world around a VAE."""
    widths = widths or Widths()
    tokenizer = clip_tokenizer()
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(_clip_config(tokenizer, widths.text)),
        tokenizer=tokenizer,
        unet=build_unet(widths),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="trailing",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sd3_pipeline(vae: AutoencoderKL, widths: Widths | None = None) -> StableDiffusion3Pipeline:
    """Untrained StableDiffusion3Pipeline of the shapes world around a VAE."""
    widths = widths or Widths()
    tokenizer = clip_tokenizer()
    towers = [CLIPTextModelWithProjection(_clip_config(tokenizer, widths.text // 2)) for _ in range(2)]
    t5 = t5_tokenizer()
    t5_config = T5Config(
        vocab_size=len(t5), d_model=widths.text, d_kv=32, d_ff=2 * widths.text, num_layers=1, num_heads=4
    )
    return StableDiffusion3Pipeline(
        transformer=build_dit(widths),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=towers[0],
        tokenizer=tokenizer,
        text_encoder_2=towers[1],
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=T5EncoderModel(t5_config),
        tokenizer_3=t5,
    )


def count_parameters(module: torch.nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def save_pipeline(pipeline: Any, folder: str) -> None:
    """Save a pipeline with networks in fp16 and text encoders in fp32, so that a plain ``from_pretrained``
    works.
    """
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            part.to(torch.float32 if name.startswith("text_encoder") else torch.float16)
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float32)
