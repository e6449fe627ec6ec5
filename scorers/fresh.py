"""A scorer to train: loaded with its weights, or a new head on a trained tower where there are none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import scorers
from scorers.votes import Item, Rating

HEADS = frozenset({"pal", "gpm", "nima"})
"""Scorers that can start from a PickScore-type tower alone."""


def to_train(
    name: str,
    weights: str | Path | None,
    items: Sequence[Item] = (),
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Any:
    """Load a scorer to be trained, in float32.

    Args:
        name: of a scorer with weights.
        weights: what its loader reads. For a head (pal, gpm, nima) also the folder of a PickScore-type tower,
            on which a new one is put.
        items: what it will learn from; PAL makes a row for each person that voted.
        device: where it trains.
        seed: of a new head, so that a run that is started again starts from the same weights.

    Raises:
        FileNotFoundError: the weights are not there.
        ValueError: see the scorer's loader.
    """
    found = scorers.find_weights(name, weights)
    tower = found is not None and (found / "config.json").is_file() and not (found / "pal.json").is_file()
    if name in HEADS and found is not None and tower:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return _head(name, found, items, device)
    return scorers.load(name, found, device=device)


def _head(name: str, folder: Path, items: Sequence[Item], device: str | torch.device) -> Any:
    """A new head on a tower."""
    from scorers.gpm import GPM
    from scorers.nima import NIMA
    from scorers.pickscore import PickScore

    if name == "pal":
        return _pal(folder, items, device)
    tower = PickScore.load(folder, device=device)
    return GPM.create(tower) if name == "gpm" else NIMA.create(tower)


def _pal(folder: Path, items: Sequence[Item], device: str | torch.device) -> Any:
    """A new PAL of two groups on a tower, knowing everybody who voted."""
    from scorers.pal import Pal
    from scorers.pal_heads import PalHead, PalOptions
    from scorers.pickscore import PickScore

    users = tuple(sorted({item.user for item in items if not isinstance(item, Rating)}))
    tower = PickScore.load(folder, device=device)
    feature = tower.clip.config.projection_dim
    options = PalOptions(users=users, feature=feature, width=min(512, feature))
    return Pal(tower, PalHead(options)).to(device)
