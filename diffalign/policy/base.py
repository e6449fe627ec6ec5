"""Policy: one meaning for every model, and the reference it is compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffalign.diffusion.process import Process
from diffalign.policy.family import Cond, Family
from diffalign.policy.lora import (
    ADAPTER,
    START,
    AdapterConfig,
    active_adapters,
    adapter_parameters,
    add_adapter,
    copy_adapter,
    freeze_all_but,
    load_adapter,
    with_source_alpha,
    without_dropout,
)

ReferenceKind = Literal["auto", "off", "start", "none"]


class Policy:
    """A diffusers pipeline whose denoiser is trained, fully (``adapter=None``) or by LoRA.

    Attributes:
        pipeline: the diffusers pipeline; generation goes through it.
        process: the noise process its denoiser was trained with.
        wrapped: the denoiser as the training step calls it (DistributedDataParallel puts itself around it).
    """

    def __init__(
        self, pipeline: Any, family: Family, adapter: AdapterConfig | None, text_length: int
    ) -> None:
        """Prepare the denoiser for training; see load_policy for the arguments."""
        self.pipeline, self.family, self.adapter, self.text_length = pipeline, family, adapter, text_length
        self.process: Process = family.process(pipeline)
        self.denoiser: nn.Module = getattr(pipeline, family.component)
        self.frozen_adapters: list[str] = []
        self._reference: Literal["off", "start", "copy"] | None = None
        self._copy: nn.Module | None = None
        self._ids: dict[str, str] = {}
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.requires_grad_(False).eval()
        if adapter is None:
            self.denoiser.requires_grad_(True)
        else:
            self.adapter = with_source_alpha(adapter)
            self._add_adapters(self.adapter)
        self.wrapped: nn.Module = self.denoiser

    # ------------------------------------------------------------------ training

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond, sizes: Tensor | None = None) -> Tensor:
        """(B, C, h, w) native prediction at (B,) times; inside ``reference()`` it is the reference's."""
        return self.family.call(self.wrapped, x_t, self.process.model_time(t), cond, sizes)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Make ``predict`` answer as the reference, without gradient; every requires_grad stays as it is.

        Raises:
            RuntimeError: ``set_reference`` was not called.
        """
        if self._reference is None:
            raise RuntimeError(
                "this policy has no reference: call policy.set_reference() before training starts"
            )
        before, self.wrapped = self.wrapped, self._copy if self._copy is not None else self.denoiser
        names = [*self.frozen_adapters, *([START] if self._reference == "start" else [])]
        try:
            with torch.no_grad(), active_adapters(self.denoiser, names):
                yield
        finally:
            self.wrapped = before

    def set_reference(self, kind: ReferenceKind = "auto") -> str:
        """Fix what ``reference()`` is, as of now, and return its kind.

        ``off``: the base without the trained LoRA. ``start``: the policy as it is now (a second, frozen LoRA,
        or a
        frozen copy of the whole denoiser when that is trained). ``auto``: ``off`` for a fresh LoRA, else
        ``start``.

        Raises:
            ValueError: ``off`` for a policy without LoRA.
        """
        fresh = self.adapter is not None and self.adapter.init_from is None
        if kind == "auto":
            kind = "off" if fresh else "start"
        if kind == "none":
            self._reference = None
        elif self.adapter is None:
            if kind == "off":
                raise ValueError(
                    "reference 'off' needs a LoRA that can be switched off; use 'start' for full training"
                )
            self._copy, self._reference = deepcopy(self.denoiser).requires_grad_(False), "copy"
        else:
            if kind == "start":
                copy_adapter(self.denoiser, self.adapter, self.family.lora_targets, START)
                freeze_all_but(self.denoiser, ADAPTER)
                self._activate()
            self._reference = kind
        return kind

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {n: p for n, p in self.denoiser.named_parameters() if p.requires_grad}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Policy:
        """Move all networks; a dtype is applied to the denoiser's frozen weights, trained LoRA weights stay
        fp32.
        """
        keep = {} if self.adapter is None else adapter_parameters(self.denoiser, ADAPTER)
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.to(device)
        if dtype is not None and any(p.dtype != dtype for p in self.denoiser.parameters()):
            self.denoiser.to(dtype)
            for parameter in keep.values():
                parameter.data = parameter.data.to(torch.promote_types(torch.float32, dtype))
        return self

    # ------------------------------------------------------------------ encoders

    @property
    def device(self) -> torch.device:
        """Device of the denoiser."""
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and log-variance, each (B, C, h, w) fp32 and unscaled, of (B, 3, H, W) pixels in
        [-1, 1].
        """
        vae = self.pipeline.vae
        weight = next(vae.parameters())
        moments = vae.encode(pixels.to(weight.device, weight.dtype)).latent_dist
        return moments.mean.float(), moments.logvar.float()

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Unscaled VAE latents to the scale that the denoiser sees."""
        config = self.pipeline.vae.config
        out: Tensor = (latents - (config.shift_factor or 0.0)) * config.scaling_factor
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [-1, 1], differentiable, of (B, C, h, w) scaled latents."""
        vae = self.pipeline.vae
        unscaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels: Tensor = vae.decode(unscaled.to(next(vae.parameters()).dtype), return_dict=False)[0]
        return pixels.float()

    @property
    def side(self) -> int:
        """The model's own side in pixels."""
        config: Any = self.denoiser.config
        return int(self.pipeline.vae_scale_factor * config.sample_size)

    def encode_prompts(self, prompts: Sequence[str]) -> list[Cond]:
        """One dict of CPU tensors per prompt."""
        return self.family.encode_prompts(self.pipeline, prompts, self.text_length)

    def collate_prompts(self, rows: Sequence[Cond]) -> Cond:
        """Dicts of ``encode_prompts`` to one dict of (B, ...) tensors."""
        return self.family.collate(rows)

    def encoder_id(self, part: Literal["vae", "text"]) -> str:
        """sha256 of the weights and configuration of the VAE or of all text encoders."""
        if part not in self._ids:
            names = (
                ["vae"]
                if part == "vae"
                else [n for n in self.pipeline.components if n.startswith("text_encoder")]
            )
            modules = [getattr(self.pipeline, n) for n in sorted(names)]
            digest = weights_digest([m for m in modules if m is not None])
            self._ids[part] = digest if part == "vae" else f"{digest}-{self.text_length}"
        return self._ids[part]

    def base_id(self) -> str:
        """sha256 of the denoiser's weights without LoRA, and of its configuration."""
        if "base" not in self._ids:
            self._ids["base"] = weights_digest([self._copy or self.denoiser])
        return self._ids["base"]

    # ------------------------------------------------------------------ pictures

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 20,
        guidance: float = 4.0,
        side: int | None = None,
    ) -> Tensor:
        """(B, 3, H, W) pictures in [0, 1] through the diffusers pipeline; each picture depends on its own
        seed only.
        """
        generators = [torch.Generator(self.device).manual_seed(s) for s in seeds]
        self.pipeline.set_progress_bar_config(disable=True)
        training = self.denoiser.training
        self.denoiser.eval()
        size = side or self.side
        out = self.pipeline(
            list(prompts),
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
            **self.family.generate_options(self.pipeline, self.text_length),
        )
        self.denoiser.train(training)
        pictures: Tensor = out.images.float()
        return pictures

    @contextmanager
    def base(self) -> Iterator[None]:
        """Generate as the untrained base inside (LoRA off; for full training the frozen start)."""
        if self.adapter is not None:
            with active_adapters(self.denoiser, self.frozen_adapters):
                yield
            return
        if self._copy is None:
            raise RuntimeError("a fully trained policy keeps its base only after set_reference('start')")
        setattr(self.pipeline, self.family.component, self._copy)
        try:
            yield
        finally:
            setattr(self.pipeline, self.family.component, self.denoiser)

    # ------------------------------------------------------------------ set-up

    def _add_adapters(self, adapter: AdapterConfig) -> None:
        for i, source in enumerate(adapter.frozen):
            name = f"frozen{i}"
            self.pipeline.load_lora_weights(source, adapter_name=name)
            without_dropout(self.denoiser, name)
            self.frozen_adapters.append(name)
        add_adapter(self.denoiser, adapter, self.family.lora_targets)
        if adapter.init_from:
            load_adapter(self.denoiser, adapter.init_from, adapter)
        freeze_all_but(self.denoiser, ADAPTER)
        self._activate()

    def _activate(self) -> None:
        """Make the trained LoRA and the frozen ones active, for good."""
        from diffalign.policy.lora import tuner_layers

        for layer in tuner_layers(self.denoiser):
            layer._active_adapter = [n for n in (*self.frozen_adapters, ADAPTER) if n in layer.scaling]


def weights_digest(modules: Sequence[nn.Module]) -> str:
    """sha256 over parameter names, shapes and values (as fp32) of modules; LoRA and buffers are left out."""
    digest = hashlib.sha256()
    for module in modules:
        plain = {
            k.replace(".base_layer.", "."): v for k, v in module.state_dict().items() if ".lora_" not in k
        }
        for name, value in sorted(plain.items()):
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
