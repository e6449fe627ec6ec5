"""People in a plain diffusers pipeline: ``attach`` an adapter, ``use`` somebody, and call the pipeline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffalign.attention.decoupled import Implementation
from diffalign.personalize.adapter import UserAdapter, load_adapter, tokens_of
from diffalign.personalize.encoders import About, EncoderOptions
from diffalign.personalize.encoders.direction import DirectionOptions, parse_direction
from diffalign.personalize.guidance import Condition, Level, conditional, each, mixture
from diffalign.personalize.users import INDEX, Users, UsersError

KEYWORDS = ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs")
THREE_BRANCHES = ("do_perturbed_attention_guidance", "image_guidance_scale")
"""What pipelines have whose guidance has a third branch: perturbed attention, InstructPix2Pix."""
Who = str | Tensor | Mapping[str, float] | Sequence[str] | About
"""Somebody of the store by name or id; tokens (K, D); a mixture with weights; one person for each prompt; or
what is known of one person, or of one for each prompt."""


class Attached:
    """A pipeline with people; ``pipe.unet`` or ``pipe.transformer`` gets them whenever it is called.

    Args:
        pipe: the pipeline.
        adapter: encoder and layers, attached to its denoiser.
        users: people who can be named; None where the folder has none.
    """

    def __init__(self, pipe: Any, adapter: UserAdapter, users: Users | None, before: dict[str, Any]) -> None:
        """``before`` are the denoiser's own processors, for ``detach``."""
        self.pipe, self.adapter, self.users = pipe, adapter, users
        self.denoiser = denoiser_of(pipe)
        self.condition: Condition | None = None
        self.user_guidance: float | None = None
        self._before, self._keyword = before, _keyword(self.denoiser)
        self._pictures: int | None = None
        self._hooks = [
            self.denoiser.register_forward_pre_hook(self._given, with_kwargs=True),
            self.denoiser.register_forward_hook(self._answered),
        ]

    def use(
        self,
        who: Who,
        *,
        scale: float | None = None,
        user_guidance: float | None = None,
        level: Level = "output",
    ) -> Attached:
        """Make all further pictures for somebody.

        Args:
            who: see ``Who``. Of a mixture {"anna": 1.5, "ben": -0.5} each weight multiplies what attention to
                that person gives (``level="output"``), or the tokens are mixed (``level="token"``).
            scale: weight of the attention to the person; None is that of the adapter.
            user_guidance: weight w_u of guidance of its own for the person, at the price of a third
                evaluation; None has the person in the conditional branch of the usual guidance.
            level: of a mixture.

        Raises:
            UsersError: somebody unknown.
            ValueError: tokens of another number or width or that are not finite, a mixture that is refused,
                or a weight that is not finite.
        """
        for name, value in (("scale", scale), ("user_guidance", user_guidance)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} is {value}; it must be a finite number")
        condition = self._condition(who, level)
        self.condition = condition.scaled(self.adapter.branch.scale if scale is None else scale)
        self.user_guidance = user_guidance
        return self

    def direct(
        self, text: str, *, scale: float | None = None, user_guidance: float | None = None
    ) -> Attached:
        """Make all further pictures for a mixture of rewards, ``hps=0.8,aesthetic=0.6``.

        Raises:
            ValueError: the adapter's encoder is none of directions, or see ``parse_direction``.
        """
        about = About(direction=direction_of(self.adapter.encoder.options, text)[None])
        return self.use(about, scale=scale, user_guidance=user_guidance)

    def nobody(self) -> Attached:
        """Make all further pictures as the pipeline made them without people, bit for bit."""
        self.condition, self.user_guidance = None, None
        return self

    def let_go(self) -> None:
        """Have calls of the pipeline be what they were; the layers stay."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def detach(self) -> None:
        """Take people off again; the pipeline is what it was."""
        self.let_go()
        self.denoiser.set_attn_processor(dict(self._before))

    def _condition(self, who: Who, level: Level) -> Condition:
        if isinstance(who, str):
            return each([self._tokens(who)])
        if isinstance(who, Tensor):
            return each([self._checked(who)])
        if isinstance(who, About):
            encoder = self.adapter.encoder
            training = encoder.training
            with torch.no_grad():
                tokens = encoder.eval()(who.to(encoder.nobody.device))
            encoder.train(training)
            return each(list(tokens))
        if isinstance(who, Mapping):
            return mixture([(self._tokens(name), weight) for name, weight in who.items()], level)
        return each([self._tokens(name) for name in who])

    def _tokens(self, name: str) -> Tensor:
        if self.users is None:
            raise UsersError(nobody_stored(name))
        return tokens_of(self.adapter.encoder, self.users, name)

    def _checked(self, tokens: Tensor) -> Tensor:
        """One person's tokens, as they were given."""
        options = self.adapter.encoder.options
        if tuple(tokens.shape) != (options.tokens, options.width):
            raise ValueError(
                f"user tokens are {tuple(tokens.shape)}; this adapter takes ({options.tokens}, "
                f"{options.width}): use the encoder that belongs to it"
            )
        if not bool(tokens.isfinite().all()):
            raise ValueError("user tokens are not all finite: make them again")
        return tokens

    def _given(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Add the user tokens to a call of the denoiser."""
        self._pictures = None
        if self.condition is None:
            return args, kwargs
        rows = len(args[0] if args else kwargs["hidden_states" if "hidden_states" in kwargs else "sample"])
        # guidance by skipped layers (SD3) asks once more for the conditional branch, alone
        alone = kwargs.get("skip_layers") is not None
        guided = not alone and bool(getattr(self.pipe, "do_classifier_free_guidance", False))
        if guided and rows % 2:
            raise ValueError(
                f"guidance of {rows} rows: pipelines with more than two branches are not supported"
            )
        pictures = rows // 2 if guided else rows
        silent = pictures if guided else 0  # rows of the branch without text, which has nobody either
        if self.user_guidance is not None:
            if alone:
                raise ValueError("user_guidance and guidance by skipped layers exclude each other: take one")
            self._pictures = pictures
            args, kwargs = _again((args, kwargs), rows, pictures)
            silent = rows
        tokens, scale = self._rows(pictures, silent)
        given = {**(kwargs.get(self._keyword) or {}), "user_tokens": tokens, "user_scale": scale}
        return args, {**kwargs, self._keyword: given}

    def _rows(self, pictures: int, silent: int) -> tuple[Tensor, Tensor]:
        """Tokens and scales of ``silent`` rows without anybody and then one row for each picture."""
        assert self.condition is not None  # _given has looked
        tokens, scale = (x.to(self.denoiser.device) for x in (self.condition.tokens, self.condition.scale))
        people = len(tokens)
        if pictures % people:
            raise ValueError(
                f"{people} people for {pictures} pictures: give one person, or one for each prompt"
            )
        scale = torch.cat(
            [scale.new_zeros(silent, scale.shape[1]), scale.repeat_interleave(pictures // people, 0)]
        )
        if people > 1:
            own = tokens.repeat_interleave(pictures // people, 0)
            tokens = torch.cat([own.new_zeros(silent, *own.shape[1:]), own])
        return tokens, scale

    def _answered(self, module: Any, args: Any, output: Any) -> Any:
        """Fold the third branch into the conditional one."""
        if self._pictures is None or self.user_guidance is None:
            return output
        sample = output[0]
        guided = len(sample) > 2 * self._pictures
        before, text, user = sample.tensor_split(
            [len(sample) - 2 * self._pictures, len(sample) - self._pictures]
        )
        text_weight = float(self.pipe.guidance_scale) if guided else 1.0
        found = conditional(text, user, text_weight=text_weight, user_weight=self.user_guidance)
        found = torch.cat([before, found.to(sample.dtype)])
        return (found, *output[1:]) if isinstance(output, tuple) else type(output)(sample=found)


def attach(
    pipe: Any, folder: Path | str, *, backend: str = "auto", implementation: Implementation = "auto"
) -> Attached:
    """Attach the user adapter of a folder to a diffusers pipeline (Stable Diffusion, SDXL, SD3, FLUX.1).

    Until somebody is used the pipeline makes what it made before. A LoRA may be loaded before or after. With
    FLUX's ``true_cfg_scale`` the person is in its second pass, that of the negative prompt, too.

    Args:
        pipe: the pipeline, with the model that the adapter was trained on.
        folder: what ``save_adapter`` wrote, with its people.
        backend: of the text's attention, see ``attention.backends``.
        implementation: of the attention to users.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter is of another model, users are attached already, the denoiser is compiled
            already, or a pipeline without a denoiser that takes users, or whose guidance cannot be told from
            outside or has three branches.
        RuntimeError: the backend cannot be used on the model's device.
    """
    folder, denoiser = Path(folder), denoiser_of(pipe)
    if hasattr(denoiser, "_orig_mod"):
        raise ValueError("the denoiser is compiled already: attach people first, then torch.compile")
    _keyword(denoiser)
    _check_guidance(pipe)
    before = dict(denoiser.attn_processors)
    adapter = load_adapter(denoiser, folder, backend=backend, implementation=implementation)
    adapter.encoder.eval().requires_grad_(False)
    users = Users(folder) if (folder / INDEX).is_file() else None
    return Attached(pipe, adapter, users, before)


def direction_of(options: EncoderOptions, text: str) -> Tensor:
    """(A,) unit vector of ``hps=0.8,aesthetic=0.6`` for an encoder of these options.

    Raises:
        ValueError: it is none of directions, or see ``parse_direction``.
    """
    if not isinstance(options, DirectionOptions):
        raise ValueError("this adapter knows people and no directions: train one with the encoder direction")
    return parse_direction(text, options.scorers)


def nobody_stored(name: str) -> str:
    """What is said where an adapter has no store of people."""
    return (
        f"no people are stored beside this adapter ({INDEX}), so {name!r} cannot be found: add them with "
        "diffalign users add, or give tokens"
    )


def denoiser_of(pipe: Any) -> Any:
    """UNet or transformer of a pipeline.

    Raises:
        ValueError: it has neither.
    """
    for name in ("unet", "transformer"):
        if getattr(pipe, name, None) is not None:
            return getattr(pipe, name)
    raise ValueError(f"{type(pipe).__name__} has neither unet nor transformer: users cannot be attached")


def _keyword(denoiser: Any) -> str:
    """Name of the argument that carries what attention layers take."""
    known = inspect.signature(denoiser.forward).parameters
    found = next((k for k in KEYWORDS if k in known), None)
    if found is None:
        raise ValueError(f"{type(denoiser).__name__} passes nothing to its attention layers: no users for it")
    return found


def _check_guidance(pipe: Any) -> None:
    """Refuse a pipeline of which the branches with and without text cannot be told apart.

    FLUX.1 has its guidance as an input, and one branch.
    """
    if "guidance_embeds" in getattr(denoiser_of(pipe), "config", {}):
        return
    kind = type(pipe)  # what is asked of the pipeline itself has no value before its first call
    three = [name for name in THREE_BRANCHES if hasattr(kind, name)]
    if not hasattr(kind, "do_classifier_free_guidance") or three:
        why = "guides by more than text" if three else "does not say whether it guides (PixArt)"
        raise ValueError(
            f"{kind.__name__} {why}, so that it cannot be known which rows are for the person: give its "
            "denoiser the tokens yourself (diffalign.attention.processors.attach_users)"
        )


def _again(found: Any, rows: int, pictures: int) -> Any:
    """Arguments with the last ``pictures`` rows of every tensor of ``rows`` rows once more at the end."""
    if isinstance(found, Tensor):
        batched = found.ndim > 0 and len(found) == rows
        return torch.cat([found, found[rows - pictures :]]) if batched else found
    if isinstance(found, dict):
        return {k: _again(v, rows, pictures) for k, v in found.items()}
    if isinstance(found, tuple):
        return tuple(_again(v, rows, pictures) for v in found)
    return found
