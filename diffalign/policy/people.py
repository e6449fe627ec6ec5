"""People in a policy: their tokens in a batch's conditioning, and which weights are trained with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diffalign.policy.family import Cond

if TYPE_CHECKING:
    from diffalign.personalize.adapter import BranchOptions, UserAdapter
    from diffalign.personalize.encoders import EncoderOptions

USER_TOKENS, USER_SCALE = "user_tokens", "user_scale"
"""Entries of a conditioning that people are in: (B / G, K, D) tokens, and their (B,) weight."""
ENCODER = "user_encoder"
"""Name of the user encoder among the denoiser's modules, where optimizer, averages and checkpoints see it."""


def person(cond: Cond) -> dict[str, Tensor] | None:
    """What attention layers are given of people; None where the conditioning has nobody."""
    return {name: cond[name] for name in (USER_TOKENS, USER_SCALE) if name in cond} or None


def without_people(cond: Cond) -> Cond:
    """A conditioning that says nothing of people."""
    return {name: value for name, value in cond.items() if name not in (USER_TOKENS, USER_SCALE)}


def seen(cond: Cond, users: UserAdapter | None, alone: bool) -> Cond:
    """The conditioning that a policy predicts with: without people where it is ``alone``.

    Raises:
        ValueError: people, for a policy that takes none.
    """
    if users is None and person(cond) is not None:
        raise ValueError("this policy takes no people: call policy.add_users before they are in a batch")
    return without_people(cond) if alone else cond


def attach_encoder(
    denoiser: Any, encoder: EncoderOptions, branch: BranchOptions | None, people: int
) -> UserAdapter:
    """Make a user adapter whose encoder is a module of the denoiser, as its layers are.

    Raises:
        ValueError: users are attached already, the model is of a family that takes none, or it recomputes
            activations by reentrant checkpointing.
        RuntimeError: the backend of its attention cannot be used on its device.
    """
    from diffalign.personalize.adapter import add_users

    check_checkpointing(denoiser)
    users = add_users(denoiser, encoder, branch, people=people)
    denoiser.add_module(ENCODER, users.encoder)
    return users


def check_checkpointing(denoiser: nn.Module) -> None:
    """Refuse reentrant checkpointing, which silently gives no gradient to tokens in a dictionary.

    A function that does not show what it does, or is set later, is refused by the layers at the first step
    (``attention.user_keys``).

    Raises:
        ValueError: as said.
    """
    for name, module in denoiser.named_modules():
        function = getattr(module, "_gradient_checkpointing_func", None)
        if getattr(function, "keywords", {}).get("use_reentrant", False):
            raise ValueError(
                f"{name or type(denoiser).__name__} recomputes activations by reentrant checkpointing, "
                "through which user tokens get no gradient: enable it with use_reentrant=False"
            )


def train_people(denoiser: nn.Module, users: UserAdapter | None, only: bool) -> None:
    """Train encoder and layers, where there are some, beside what is trained, or ``only`` them."""
    if users is None:
        return
    if only:
        denoiser.requires_grad_(False)
    for parameter in users.parameters():
        parameter.requires_grad_(True)
