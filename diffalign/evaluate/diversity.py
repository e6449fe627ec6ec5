"""Diversity of the pictures of one prompt: distances between its seeds, and the Vendi score."""

from __future__ import annotations

import torch
from torch import Tensor

from scorers.diversity import vendi as vendi_score


def pairwise_distance(features: Tensor) -> Tensor:
    """Return the mean Euclidean distance between the seeds of each prompt.

    Args:
        features: (P, S, D) one feature vector per picture, S at least 2.

    Returns:
        (P,) float64, in units of the features.

    Raises:
        ValueError: another shape, or fewer than two seeds.
    """
    _check(features)
    x = features.double()
    first, second = torch.triu_indices(x.shape[1], x.shape[1], offset=1)
    # Row by row, because differences of all prompts at once would be (P, S (S - 1) / 2, D).
    return torch.stack([(row[first] - row[second]).norm(dim=-1).mean() for row in x])


def pixel_distance(pictures: Tensor) -> Tensor:
    """Return the mean root-mean-square difference between the seeds of each prompt.

    Args:
        pictures: (P, S, C, H, W) in [0, 1].

    Returns:
        (P,) float64 in [0, 1]; two independent pictures of uniform noise differ by 0.41.

    Raises:
        ValueError: another shape, or fewer than two seeds.
    """
    flat = pictures.flatten(2) if pictures.ndim > 3 else pictures
    per_pixel: float = flat.shape[-1] ** 0.5
    return pairwise_distance(flat) / per_pixel


def vendi(features: Tensor) -> Tensor:
    """Return the Vendi score: the effective number of different pictures.

    It is the exponential of the entropy of the eigenvalues of K / S, where K holds the cosine similarities
    (Friedman and Dieng 2023, arXiv:2210.02410).

    Args:
        features: (P, S, D), none of them zero.

    Returns:
        (P,) float64 between 1 (all alike) and S (all at right angles).

    Raises:
        ValueError: another shape, fewer than two seeds, or a feature vector of length 0.
    """
    _check(features)
    norm = features.double().norm(dim=-1)
    if (norm == 0).any():
        prompt, seed = (norm == 0).nonzero()[0].tolist()
        raise ValueError(f"the features of prompt {prompt}, seed {seed} are all 0, so they have no direction")
    return vendi_score(features)


def diversity(features: Tensor, pictures: Tensor) -> dict[str, float]:
    """Return the means over prompts, for one model's block of the report.

    Args:
        features: (P, S, D), about zero where nothing is to be seen; none of them zero everywhere.
        pictures: (P, S, C, H, W) in [0, 1].
    """
    return {name: float(values.mean()) for name, values in diversities(features, pictures).items()}


def shrunk_diversity(pictures: Tensor) -> dict[str, Tensor]:
    """Diversity of the seeds of each prompt; features are the pictures shrunk to 8 x 8, about mid-grey.

    Args:
        pictures: (P, S, C, H, W) in [0, 1], S at least 2.

    Returns:
        (P,) float64 each: ``feature_distance``, ``pixel_distance`` and ``vendi``.
    """
    small = torch.nn.functional.interpolate(pictures.float().flatten(0, 1), size=(8, 8), mode="area")
    # From black, all pictures would point about the same way; the constant gives an all-grey one a direction.
    features = torch.nn.functional.pad(small.flatten(1) - 0.5, (0, 1), value=1e-3)
    return diversities(features.unflatten(0, pictures.shape[:2]), pictures)


def diversities(features: Tensor, pictures: Tensor) -> dict[str, Tensor]:
    """Return the values of each prompt; arguments as for ``diversity``."""
    return {
        "feature_distance": pairwise_distance(features),
        "pixel_distance": pixel_distance(pictures),
        # With signs apart, opposite pictures are at right angles; as they are, Vendi would count them as one.
        "vendi": vendi(torch.cat([features.relu(), (-features).relu()], -1)),
    }


def _check(features: Tensor) -> None:
    if features.ndim != 3 or features.shape[0] < 1 or features.shape[1] < 2:
        shape = tuple(features.shape)
        raise ValueError(
            f"features have shape {shape}: expected (prompts, seeds, dimensions) with at least 2 seeds"
        )
    if not torch.isfinite(features).all():
        raise ValueError(
            "features hold a value that is not finite: look at the pictures and at what encodes them"
        )
