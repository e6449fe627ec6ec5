"""Policy: one meaning for every model, and the reference it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from diffalign.diffusion.process import Process
from diffalign.policy.family import Cond, Family
from diffalign.policy.fold import folded
from diffalign.policy.guidance import Branches, Guidance, add_branches, two_models
from diffalign.policy.identity import tokenizers_digest, weights_digest
from diffalign.policy.long_prompts import VERSION, LongPrompts, embedding_options, encode_long
from diffalign.policy.lora import (
    ADAPTER,
    START,
    AdapterConfig,
    active_adapters,
    active_names,
    adapter_parameters,
    add_adapter,
    freeze_all_but,
    load_adapter,
    load_into,
    tuner_layers,
    with_source_alpha,
    without_dropout,
)
from diffalign.policy.modes import evaluating
from diffalign.policy.people import attach_encoder, seen, train_people
from diffalign.policy.precision import arithmetic, computing
from diffalign.policy.reference import Reference, ReferenceOptions, make_reference
from diffalign.policy.reference import ReferenceKind as ReferenceKind
from diffalign.policy.vae import decoded, encoded, scaled

if TYPE_CHECKING:
    from diffalign.personalize.adapter import BranchOptions, UserAdapter
    from diffalign.personalize.encoders import EncoderOptions


class Policy:
    """A diffusers pipeline whose denoiser is trained, fully (``adapter=None``) or by LoRA.

    Attributes:
        pipeline: the diffusers pipeline; generation goes through it.
        process: the noise process its denoiser was trained with.
        wrapped: the denoiser as the training step calls it (DistributedDataParallel puts itself around it).
        dtype: arithmetic of the denoiser, the same for policy, reference and base.
        opponent: the reference; the trainer tells it of each batch (``choose``) and each optimizer step
            (``update``), and checkpoints hold its ``state()``.
    """

    def __init__(
        self, pipeline: Any, family: Family, adapter: AdapterConfig | None, text_length: int
    ) -> None:
        """Prepare the denoiser for training; see load_policy for the arguments."""
        self.pipeline, self.family, self.adapter, self.text_length = pipeline, family, adapter, text_length
        self.process: Process = family.process(pipeline)
        self.denoiser: nn.Module = getattr(pipeline, family.component)
        self.dtype: torch.dtype = next(self.denoiser.parameters()).dtype
        self.frozen_adapters: list[str] = []
        self.guidance: Branches | None = None
        self.long_prompts: LongPrompts | None = None
        self.opponent = Reference("none")
        self.users: UserAdapter | None = None
        self._referring, self._alone, self._only_users = False, False, False
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
        """(B, C, h, w) native prediction at (B,) times, in the dtype of ``x_t``.

        Inside ``reference()`` it is the reference's, and there and inside ``base()`` it sees no person.

        Raises:
            ValueError: the conditioning has people, of whom this policy knows nothing.
        """
        with arithmetic(x_t.device, self.dtype):
            call, time = partial(self.family.call, self.wrapped), self.process.model_time(t)
            answer = partial(self.opponent.answer, call) if self._referring else call
            out = answer(x_t, time, seen(cond, self.users, self._alone), sizes)
        return out.to(x_t.dtype)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Make ``predict`` and ``generate`` answer as the reference, without gradient.

        Every requires_grad stays as it is. A pool answers as the member that ``opponent.choose`` drew.

        Raises:
            RuntimeError: ``set_reference`` was not called.
        """
        if self.opponent.kind == "none":
            raise RuntimeError(
                "this policy has no reference: call policy.set_reference() before training starts"
            )
        network = self.opponent.network if self.opponent.network is not None else self._copy
        self._referring = True
        try:
            with torch.no_grad(), self._answering(network, self.opponent.adapters):
                self.opponent.enter()
                yield
        finally:
            self._referring = False

    @contextmanager
    def _answering(self, network: nn.Module | None, adapters: Sequence[str]) -> Iterator[None]:
        """Inside, another network (or the denoiser with these adapters) predicts and makes pictures."""
        before = self.wrapped, self.guidance, self._alone
        self.wrapped, self.guidance, self._alone = self.denoiser if network is None else network, None, True
        if network is not None:
            setattr(self.pipeline, self.family.component, network)
        try:
            with active_adapters(self.denoiser, list(adapters)):
                yield
        finally:
            self.wrapped, self.guidance, self._alone = before
            if network is not None:
                setattr(self.pipeline, self.family.component, self.denoiser)

    def set_reference(self, kind: ReferenceOptions = "auto") -> str:
        """Fix what ``reference()`` is, as of now, and return its kind.

        ``off``: the base without the trained LoRA. ``start``: the policy as it is now (a second, frozen LoRA,
        or a frozen copy of the whole denoiser when that is trained). ``auto``: ``off`` for a fresh LoRA, else
        ``start``. ``ema``: starts as the policy and follows it slowly. ``pool``: former checkpoints of a
        LoRA. ``lora``: a LoRA of an earlier run.

        Raises:
            ValueError: ``off``, ``pool`` or ``lora`` for a policy without LoRA.
        """
        if kind == "auto":
            fresh = self.adapter is not None and self.adapter.init_from is None
            kind = "off" if fresh else "start"
        self._ids.pop("reference", None)
        if kind == "start" and self.adapter is None:
            self._keep_copy()
        self.opponent = make_reference(self, kind)
        train_people(self.denoiser, self.users, self._only_users)
        return self.opponent.kind

    def keep_base(self) -> None:
        """Keep what ``base()`` needs, as of now: a frozen copy of a denoiser that is trained whole.

        ``set_reference`` keeps it for objectives with a reference; the others call this before training where
        pictures of the base are wanted. With LoRA the base is always there.
        """
        if self.adapter is None and self._copy is None:
            self._keep_copy()

    def _keep_copy(self) -> None:
        self._copy = deepcopy(self.denoiser).requires_grad_(False)

    @property
    def networks(self) -> list[nn.Module]:
        """The denoiser and, where one is kept, the frozen copy of it."""
        return [self.denoiser] if self._copy is None else [self.denoiser, self._copy]

    @contextmanager
    def standing_in(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        """Inside, pictures and exports come from other ``networks``, in the order of that property.

        ``predict`` keeps the policy's own.
        """
        before = self.networks
        self._take(networks)
        try:
            yield
        finally:
            self._take(before)

    def _take(self, networks: Sequence[nn.Module]) -> None:
        self.denoiser, self._copy = networks[0], networks[1] if len(networks) > 1 else None
        setattr(self.pipeline, self.family.component, self.denoiser)

    def _copies(self) -> list[nn.Module]:
        """Networks beside the denoiser: the start, and a reference that follows."""
        return [m for m in (self._copy, self.opponent.network) if m is not None]

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name."""
        return {n: p for n, p in self.denoiser.named_parameters() if p.requires_grad}

    def add_users(
        self,
        encoder: EncoderOptions,
        branch: BranchOptions | None = None,
        *,
        people: int = 0,
        only: bool = False,
    ) -> UserAdapter:
        """Condition predictions on single people as well, by ``user_tokens`` of a batch; see policy.people.

        Call it before training, on the final device. ``people`` have rows in the encoder's table; ``only``
        freezes the LoRA, as PPD's second stage does.

        Raises:
            ValueError: a policy without LoRA, or see ``people.attach_encoder``.
        """
        if self.adapter is None:
            raise ValueError("people are trained beside a LoRA, and all weights are trained: set an adapter")
        self.users = attach_encoder(self.denoiser, encoder, branch, people)
        self._only_users = only
        train_people(self.denoiser, self.users, self._only_users)
        return self.users

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Policy:
        """Move all networks and the noise process; a dtype is the arithmetic of the denoiser from then on.

        The denoiser's frozen weights are stored in it; trained ones, and the LoRA that training started from,
        stay in fp32 at least and keep their values. Encoders and VAE keep the dtype that they were loaded in.
        """
        for part in self.pipeline.components.values():
            if isinstance(part, nn.Module):
                part.to(device)
        for copy in self._copies():
            copy.to(device)
        if device is not None and self.process.alphas_cumprod is not None:
            # here once, so that no training step has to wait for it
            self.process = replace(self.process, alphas_cumprod=self.process.alphas_cumprod.to(device))
        if dtype is not None:
            self._cast(dtype)
        return self

    def _cast(self, dtype: torch.dtype) -> None:
        """Store each weight of the denoiser as it is needed; what stays wide is never rounded on the way."""
        self.dtype, wide = dtype, torch.promote_types(torch.float32, dtype)
        for copy in self._copies():
            copy.to(wide)
        starts = adapter_parameters(self.denoiser, START).values()
        kept = {id(p) for p in (*self.trainable().values(), *starts)}
        frozen = wide if self.adapter is None else dtype
        for weight in (*self.denoiser.parameters(), *self.denoiser.buffers()):
            if weight.is_floating_point():
                weight.data = weight.data.to(wide if id(weight) in kept else frozen)

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
        return encoded(self.pipeline.vae, pixels)

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Unscaled VAE latents to the scale that the denoiser sees."""
        return scaled(self.pipeline.vae, latents)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 3, H, W) pixels in [-1, 1], differentiable, of (B, C, h, w) scaled latents."""
        return decoded(self.pipeline.vae, latents)

    @property
    def side(self) -> int:
        """The model's own side in pixels."""
        config: Any = self.denoiser.config
        return int(self.pipeline.vae_scale_factor * config.sample_size)

    def encode_prompts(self, prompts: Sequence[str]) -> list[Cond]:
        """One dict of CPU tensors per prompt; in segments where ``set_long_prompts`` was called."""
        if self.long_prompts is not None:
            return encode_long(self.family, self.pipeline, prompts, self.text_length, self.long_prompts)
        return self.family.encode_prompts(self.pipeline, prompts, self.text_length)

    def set_long_prompts(self, options: LongPrompts | None) -> None:
        """Encode prompts sentence by sentence from now on, in training and for pictures; None: as usual."""
        self.long_prompts = options
        self._ids.pop("text", None)

    def collate_prompts(self, rows: Sequence[Cond]) -> Cond:
        """Dicts of ``encode_prompts`` to one dict of (B, ...) tensors."""
        return self.family.collate(rows)

    def encoder_id(self, part: Literal["vae", "text"]) -> str:
        """sha256 of the weights of the VAE, or of all text encoders and of how prompts are encoded.

        The LoRA that a first stage put into a text encoder counts.
        """
        if part not in self._ids:
            names = (
                ["vae"]
                if part == "vae"
                else [n for n in self.pipeline.components if n.startswith("text_encoder")]
            )
            modules = [m for m in (getattr(self.pipeline, n) for n in sorted(names)) if m is not None]
            digest = weights_digest(modules, self.frozen_adapters)
            empty = "-zeros" if self.family.zero_unconditional(self.pipeline) else ""
            long = "" if self.long_prompts is None else f"-{VERSION}-{self.long_prompts}"
            how = f"{tokenizers_digest(self.pipeline)}-{self.text_length}{empty}{long}"
            self._ids[part] = digest if part == "vae" else f"{digest}-{how}"
        return self._ids[part]

    def base_id(self) -> str:
        """sha256 of the base's weights: the denoiser with its first stages, without the LoRA that is trained.

        Of a policy that is trained whole and keeps no copy of its base: of the weights at the first call.
        """
        if "base" not in self._ids:
            self._ids["base"] = weights_digest([self._copy or self.denoiser], self.frozen_adapters)
        return self._ids["base"]

    def reference_id(self) -> str:
        """sha256 of the reference's weights and of what is computed with them.

        Raises:
            RuntimeError: there is no reference, or it changes during training.
        """
        if self.opponent.kind == "none" or self.opponent.moves:
            raise RuntimeError(
                f"reference {self.opponent.kind} has no fixed weights: take off, start or lora"
            )
        if "reference" not in self._ids:
            network = self._copy if self._copy is not None else self.denoiser
            self._ids["reference"] = weights_digest([network], self.opponent.adapters)
        return self._ids["reference"]

    def present_id(self) -> str:
        """sha256 of the weights that ``generate`` uses now, guidance by a second model included.

        Inside ``base()`` and ``reference()`` those of the base and of the reference. Never kept: training
        moves them.
        """
        network: nn.Module = getattr(self.pipeline, self.family.component)
        if self.guidance is None:
            return weights_digest([network], active_names(network))
        return f"{weights_digest([network], self.guidance.names)}-{self.guidance}"

    def set_guidance(self, guidance: Guidance | None) -> None:
        """Make pictures with a second model in the unconditional branch from now on; None: as usual.

        ``predict``, training, ``base()`` and ``reference()`` take no notice of it.

        Raises:
            FileNotFoundError: there is no LoRA where one is named.
            ValueError: the trained LoRA is to be the negative one, and there is none.
        """
        self.guidance = None if guidance is None else add_branches(self, guidance)
        train_people(self.denoiser, self.users, self._only_users)

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
        """(B, 3, H, W) fp32 pictures in [0, 1]: latents by the diffusers pipeline, pixels by ``decode``.

        Each picture depends on its own seed only. The safety checker of SD1.x is not run: it would turn
        pictures black that are to be compared.
        """
        generators = [torch.Generator(self.device).manual_seed(s) for s in seeds]
        self.pipeline.set_progress_bar_config(disable=True)
        size = side or self.side
        with self._sampling():
            out = self.pipeline(
                **self._texts(prompts),
                height=size,
                width=size,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
                output_type="latent",
                **self.family.generate_options(self.pipeline, self.text_length),
            )
        pixels = self.decode(out.images)
        pictures: Tensor = self.pipeline.image_processor.postprocess(pixels, output_type="pt")
        return pictures

    def _texts(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The pipeline's arguments for prompts: the prompts, or what they are as long ones."""
        if self.long_prompts is None:
            return {"prompt": list(prompts)}
        rows = self.encode_prompts([*prompts, *([""] * len(prompts))])
        return embedding_options(self.collate_prompts(rows), self.pipeline, self.device)

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """The pipeline's denoiser (policy or base) without dropout, with LoRAs folded in unless guidance
        switches them, and in its arithmetic; then as before.
        """
        denoiser: nn.Module = getattr(self.pipeline, self.family.component)
        guided = two_models(self.pipeline, denoiser, self.guidance)
        whole = folded(denoiser) if self.guidance is None else nullcontext()
        with evaluating(denoiser), guided, whole, computing(denoiser, self.device, self.dtype):
            yield

    @contextmanager
    def base(self) -> Iterator[None]:
        """Generate as the untrained base inside (LoRA off; for full training the frozen start).

        Raises:
            RuntimeError: neither ``set_reference`` nor ``keep_base`` kept the start of a full training.
        """
        if self.adapter is None and self._copy is None:
            raise RuntimeError(
                "a policy that is trained whole has lost its base: call policy.keep_base() before training"
            )
        with self._answering(self._copy, self.frozen_adapters):
            yield

    # ------------------------------------------------------------------ set-up

    def _add_adapters(self, adapter: AdapterConfig) -> None:
        for i, source in enumerate(adapter.frozen):
            name = f"frozen{i}"
            load_into(self.pipeline, source, name)
            without_dropout(self.denoiser, name)
            self.frozen_adapters.append(name)
        add_adapter(self.denoiser, adapter, self.family.lora_targets)
        if adapter.init_from:
            load_adapter(self.denoiser, adapter.init_from, adapter)
        freeze_all_but(self.denoiser, ADAPTER)
        self.activate()

    def activate(self) -> None:
        """Make the trained LoRA and the frozen ones active, for good."""
        for layer in tuner_layers(self.denoiser):
            layer._active_adapter = [n for n in (*self.frozen_adapters, ADAPTER) if n in layer.scaling]
