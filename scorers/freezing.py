"""Which blocks of a tower train: the last ones, and what follows them."""

from __future__ import annotations

import re

from torch import nn

BLOCK = re.compile(r"(?:^|\.)(?:resblocks|layers|blocks|layer)\.(\d+)\.")
VISION = re.compile(r"(?:^|\.)(?:vision_model|visual|visual_encoder|vision|vision_tower)\.")
TEXT = re.compile(r"(?:^|\.)(?:text_model|text_encoder|text|bert)\.")
PLAIN_TEXT = re.compile(r"(?:^|\.)(?:transformer\.resblocks|token_embedding|positional_embedding|ln_final)\b")
FRONT = re.compile(r"embed|conv1|ln_pre|pre_layrnorm|cls_token|patch|position")


def unlock(model: nn.Module, *, vision: int | None, text: int | None) -> None:
    """Let a model train, but freeze the first blocks of its towers with their embeddings.

    Args:
        model: parameters are named as transformers, open_clip or BLIP name them.
        vision: train so many last blocks of the picture tower; None trains the whole tower.
        text: the same of the text tower.

    Raises:
        ValueError: a tower with fewer blocks, or no such tower.
    """
    model.requires_grad_(True)
    for tower, last in (("vision", vision), ("text", text)):
        if last is not None:
            _freeze(model, tower, last)


def tower_of(name: str) -> str | None:
    """``vision``, ``text``, or None for what belongs to neither (heads, projections, scales)."""
    if VISION.search(name):
        return "vision"
    return "text" if TEXT.search(name) or PLAIN_TEXT.search(name) else None


def _freeze(model: nn.Module, tower: str, last: int) -> None:
    mine = {n: p for n, p in model.named_parameters() if tower_of(n) == tower}
    blocks = {n: int(found[1]) for n in mine if (found := BLOCK.search(n)) is not None}
    count = 1 + max(blocks.values(), default=-1)
    if not 0 <= last <= count or not count:
        raise ValueError(
            f"the {tower} tower has {count} blocks, so {last} of them cannot be left to train; set "
            f"unlocked_{tower} to at most {count}, or to null to train all"
        )
    for name, parameter in mine.items():
        early = blocks[name] < count - last if name in blocks else FRONT.search(name) is not None
        if early and last < count:
            parameter.requires_grad_(False)
