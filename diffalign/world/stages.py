"""What is trained to make the tiny pipelines: VAE, its decoder again, UNet and MMDiT, each with its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffalign.world.grammar import double_prompts, sample_prompts, single_prompts
from diffalign.world.models import (
    LATENT_CHANNELS,
    Widths,
    build_sd3_pipeline,
    build_sd_pipeline,
    build_vae,
    save_pipeline,
)
from diffalign.world.obedience import obedience, reconstruction
from diffalign.world.shapes import draw
from diffalign.world.teacher import Teacher, short_attention

PICTURES = 24_000
"""Pictures whose latents are cached for the UNet and the MMDiT."""
HARD = ("star", "cross")
"""Shapes that are learnt last; their pictures are seen twice as often."""


class Stage(ABC):
    """One network to train: its modules, its loss, and what to measure."""

    name: str
    steps: int
    learning_rate: float
    modules: nn.ModuleDict
    busiest: str = ""
    """Attribute with the network that takes most of a step, if compiling it is worth while."""

    @abstractmethod
    def loss(self, rng: np.random.Generator) -> Tensor:
        """Scalar loss of one fresh batch."""

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for every weight that is trained."""
        return [adamw([p for p in self.modules.parameters() if p.requires_grad], self.learning_rate)]

    @abstractmethod
    def measure(self) -> dict[str, float]:
        """Figures worth logging, with the averaged weights in place."""

    @abstractmethod
    def export(self, out: Path) -> None:
        """Save the averaged weights for users."""

    @abstractmethod
    def restore(self, out: Path) -> None:
        """Take the weights that ``export`` saved."""


def adamw(weights: Sequence[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW as all stages use it."""
    return torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.99), fused=True)


class VaeStage(Stage):
    """Autoencoder: absolute error plus a slight pull of the latents to the unit Gaussian."""

    name, steps, learning_rate, batch = "vae", 2700, 1.5e-3, 32

    def __init__(self) -> None:
        """Untrained."""
        self.vae = build_vae(Widths())
        nn.init.constant_(
            self.vae.quant_conv.bias.data[LATENT_CHANNELS:], -6.0
        )  # start with little noise: noise of s.d. 1 stalls for long
        self.modules = nn.ModuleDict({"vae": self.vae})

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Mean absolute error, weighted towards edges, and a little of the KL divergence."""
        x = draw(sample_prompts(self.batch, rng), rng) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.vae.encode(x).latent_dist
            y = self.vae.decode(posterior.sample()).sample
        error = edge_weight(x) * (y.float() - x).abs()
        out: Tensor = error.mean() + 3e-4 * posterior.kl().mean() / 256
        return out

    def measure(self) -> dict[str, float]:
        """See ``reconstruction``."""
        return reconstruction(self.vae)

    def export(self, out: Path) -> None:
        """Set the scaling factor to 1 / s.d. of the latents and save."""
        rng = np.random.default_rng(7)
        with torch.no_grad():
            z = self.vae.encode(draw(sample_prompts(512, rng), rng) * 2 - 1).latent_dist.mean
        self.vae.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=0.0)
        self.vae.to(torch.float16).save_pretrained(out / "vae")
        self.vae.to(torch.float32)

    def restore(self, out: Path) -> None:
        """See Stage."""
        self.vae.load_state_dict(AutoencoderKL.from_pretrained(vae_folder(out)).state_dict())


class DecoderStage(VaeStage):
    """Polish of the VAE's decoder: the latents stay as they are, and slightly wrong ones are drawn crisply.

    What a denoiser makes is never quite a latent of a picture; a decoder that has only seen those draws
    frayed shapes from it.
    """

    name, steps, learning_rate, spread = "decoder", 1800, 1e-3, 0.35

    def __init__(self, folder: Path) -> None:
        """Take the trained VAE in ``folder`` and freeze its encoder."""
        self.vae = load_vae(folder).requires_grad_(False)
        self.vae.decoder.requires_grad_(True)
        self.vae.post_quant_conv.requires_grad_(True)
        self.modules = nn.ModuleDict({"vae": self.vae})

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Mean absolute error, weighted towards edges, from latents with up to ``spread`` s.d. of noise."""
        x = draw(sample_prompts(self.batch, rng), rng) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                z = self.vae.encode(x).latent_dist.mean.float()
            noise = torch.rand(len(z), 1, 1, 1) * self.spread / self.vae.config.scaling_factor
            y = self.vae.decode(z + noise * torch.randn_like(z)).sample
        error: Tensor = edge_weight(x) * (y.float() - x).abs()
        return error.mean()

    def export(self, out: Path) -> None:
        """Save the VAE on its own and inside the pipelines that are there already."""
        self.vae.to(torch.float16)
        for folder in (out / "vae", out / "unet" / "vae", out / "dit" / "vae"):
            if folder.parent == out or folder.exists():
                self.vae.save_pretrained(folder)
        self.vae.to(torch.float32)


def load_vae(folder: Path) -> AutoencoderKL:
    """Trained VAE of a folder, whose name it forgets: what is saved from it is not of one machine."""
    vae = AutoencoderKL.from_pretrained(folder)
    vae.register_to_config(_name_or_path="")
    return vae


def edge_weight(x: Tensor) -> Tensor:
    """(B, 1, H, W) weights, 1 on flat ground and up to 5 around edges: most pixels are flat, what counts is
    not.
    """
    dx = F.pad((x[..., :, 1:] - x[..., :, :-1]).abs().amax(1, keepdim=True), (0, 1))
    dy = F.pad((x[..., 1:, :] - x[..., :-1, :]).abs().amax(1, keepdim=True), (0, 0, 0, 1))
    return 1 + 4 * F.max_pool2d((dx + dy).clamp(max=1), 5, 1, 2)


class DenoiserStage(Stage):
    """What the UNet and the MMDiT share: cached latents, prompts dropped for guidance, obedience as the
    measure.
    """

    learning_rate, batch, drop = 1e-3, 64, 0.1

    def __init__(self, vae_folder: Path, work: Path) -> None:
        """Untrained, around a trained VAE; ``work`` keeps the cached latents."""
        self.vae = load_vae(vae_folder).requires_grad_(False)
        self.latents = cached_latents(self.vae, work / "latents.safetensors")
        self.prompts = [str(p) for p in sample_prompts(PICTURES, np.random.default_rng(2))]
        hard = np.array([any(f" {shape}" in p for shape in HARD) for p in self.prompts])
        self.share = (1 + hard) / (1 + hard).sum()
        self.pipeline = self.build()
        self.pipeline.set_progress_bar_config(disable=True)

    @abstractmethod
    def build(self) -> Any:
        """Make the untrained pipeline and set ``modules``."""

    @abstractmethod
    def error(self, x0: Tensor, noise: Tensor, prompts: Sequence[str], rng: np.random.Generator) -> Tensor:
        """Mean squared error of the prediction."""

    def loss(self, rng: np.random.Generator) -> Tensor:
        """Denoising error of a batch of cached latents, a tenth of the prompts emptied."""
        rows = rng.choice(len(self.latents), size=self.batch, p=self.share)
        prompts = ["" if rng.random() < self.drop else self.prompts[i] for i in rows]
        x0 = self.latents[torch.from_numpy(rows)]
        return self.error(x0, torch.randn_like(x0), prompts, rng)

    def measure(self) -> dict[str, float]:
        """Obedience on 120 held-out one-object prompts, and on 40 two-object prompts."""
        return {
            "obedience": obedience(self.pipeline, single_prompts("heldout")[:120]),
            "obedience_two": obedience(self.pipeline, double_prompts("heldout")[:40]),
        }

    def export(self, out: Path) -> None:
        """Save the pipeline as users load it."""
        save_pipeline(self.pipeline, str(out / self.name))

    def restore(self, out: Path) -> None:
        """See Stage."""
        saved = DiffusionPipeline.from_pretrained(out / self.name)
        for name, module in self.pipeline.components.items():
            if isinstance(module, nn.Module):
                module.load_state_dict(getattr(saved, name).state_dict())


class UNetStage(DenoiserStage):
    """Stable-Diffusion-type pipeline: eps prediction, text encoder trained along."""

    name, busiest, steps = "unet", "unet", 11_000

    def build(self) -> Any:
        """See DenoiserStage."""
        pipeline = build_sd_pipeline(self.vae)
        self.modules = nn.ModuleDict({"unet": pipeline.unet, "text": pipeline.text_encoder})
        self.alphas_cumprod = pipeline.scheduler.alphas_cumprod
        self.unet: nn.Module = pipeline.unet
        return pipeline

    def error(self, x0: Tensor, noise: Tensor, prompts: Sequence[str], rng: np.random.Generator) -> Tensor:
        """Eps error at uniform timesteps."""
        t = torch.randint(0, len(self.alphas_cumprod), (len(x0),))
        a = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        text, _ = self.pipeline.encode_prompt(list(prompts), "cpu", 1, False)
        with torch.autocast("cpu", torch.bfloat16), short_attention(0):
            eps = self.unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, text).sample
        return F.mse_loss(eps.float(), noise)


class DiTStage(DenoiserStage):
    """SD3-type pipeline: rectified flow, three text encoders trained along, the trained UNet as a teacher."""

    name, busiest, steps = "dit", "transformer", 17_500

    def __init__(self, vae_folder: Path, work: Path, teacher: Teacher) -> None:
        """Untrained, around a trained VAE; ``teacher`` knows the velocities of the same latents."""
        super().__init__(vae_folder, work)
        self.teacher = teacher
        self.transformer: nn.Module = self.pipeline.transformer

    def build(self) -> Any:
        """See DenoiserStage."""
        pipeline = build_sd3_pipeline(self.vae)
        names = ("transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
        self.modules = nn.ModuleDict({n: getattr(pipeline, n) for n in names})
        return pipeline

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of the blocks (it needs about two thirds of AdamW's steps), AdamW for the
        rest.
        """
        blocks = self.pipeline.transformer.transformer_blocks
        matrices = [p for p in blocks.parameters() if p.ndim == 2]
        taken = {id(p) for p in matrices}
        rest = [p for p in self.modules.parameters() if id(p) not in taken]
        muon = torch.optim.Muon(matrices, lr=6e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        return [muon, adamw(rest, self.learning_rate)]

    def error(self, x0: Tensor, noise: Tensor, prompts: Sequence[str], rng: np.random.Generator) -> Tensor:
        """Velocity error at logit-normal times; text length 32 in 7 of 8 steps and 256 in the other."""
        length = 256 if rng.random() < 1 / 8 else 32
        if length == 256:  # four times the tokens: a quarter of the batch, so that no step is much dearer
            x0, noise, prompts = x0[::4], noise[::4], prompts[::4]
        sigma = torch.sigmoid(torch.randn(len(x0), 1, 1, 1))
        x = (1 - sigma) * x0 + sigma * noise
        target = self.teacher.calm(noise - x0, x, sigma, prompts)
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=length
        )
        with torch.autocast("cpu", torch.bfloat16), short_attention(length):
            v = self.transformer(
                hidden_states=x,
                timestep=sigma.flatten() * 1000,
                encoder_hidden_states=text,
                pooled_projections=pooled,
            ).sample
        return F.mse_loss(v.float(), target)


@torch.no_grad()
def cached_latents(vae: AutoencoderKL, file: Path) -> Tensor:
    """Scaled latents (PICTURES, 8, 8, 8) of the training pictures, computed once."""
    if not file.exists():
        rng = np.random.default_rng(2)
        prompts, parts = sample_prompts(PICTURES, rng), []
        for i in range(0, PICTURES, 500):
            with torch.autocast("cpu", torch.bfloat16):
                parts.append(vae.encode(draw(prompts[i : i + 500], rng) * 2 - 1).latent_dist.mean.float())
        save_file({"latents": (torch.cat(parts) * vae.config.scaling_factor).contiguous()}, file)
    return load_file(file)["latents"]


def build_stage(name: str, work: Path, out: Path) -> Stage:
    """Make the stage called ``name``; the later ones need the VAE that the first one saved in ``out``."""
    if name == "vae":
        return VaeStage()
    if name == "decoder":
        return DecoderStage(vae_folder(out))
    if name == "dit":
        return DiTStage(vae_folder(out), work, Teacher(out / "unet"))
    return UNetStage(vae_folder(out), work)


def vae_folder(out: Path) -> Path:
    """Where the trained VAE is: on its own, or (all that is committed) inside a pipeline.

    Raises:
        FileNotFoundError: nowhere yet.
    """
    for folder in (out / "vae", out / "unet" / "vae", out / "dit" / "vae"):
        if folder.exists():
            return folder
    raise FileNotFoundError(f"{out / 'vae'} is missing: train the stage 'vae' first")
