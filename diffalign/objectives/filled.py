"""Optional parts of a batch that an objective declared: given back, or named where they are missing."""

from __future__ import annotations

from torch import Tensor

from diffalign.objectives.base import Denoised, Predictions


def score_of(batch: Denoised, who: str) -> Tensor:
    """(N,) label scores.

    Raises:
        ValueError: the batch has none.
    """
    if batch.score is None:
        raise ValueError(f"{who} needs a score for every image: give it data of kind ranking")
    return batch.score.to(batch.error.dtype)


def tensors_of(batch: Denoised, who: str) -> Predictions:
    """Prediction tensors.

    Raises:
        ValueError: the batch has none.
    """
    if batch.tensors is None:
        raise ValueError(
            f"{who} needs prediction tensors (it declares 'tensors'): fill Denoised.tensors; "
            "cached reference errors hold none"
        )
    return batch.tensors


def reference_of(batch: Denoised, who: str) -> Tensor:
    """(N, C, ..., H, W) reference prediction.

    Raises:
        ValueError: the batch has none.
    """
    found = tensors_of(batch, who).ref_pred
    if found is None:
        raise ValueError(
            f"{who} compares predictions with the reference's: policy.reference must not be none"
        )
    return found


def extra_of(batch: Denoised, name: str, who: str) -> Tensor:
    """One of the extra tensors.

    Raises:
        ValueError: the batch does not have it.
    """
    if name not in batch.extra:
        raise ValueError(f"{who} needs extra[{name!r}] (it declares it): fill Denoised.extra")
    return batch.extra[name]
