"""What every differentiable scorer of pictures must do, whatever its model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scorers.protocol import Scorer

PROMPTS = ["a cat", "a red dog", "trees"]


def check_contract(scorer: Any, size: int = 36) -> None:
    """Protocol, one score per picture, batch as single, gradient, ascent, frozen weights, refusals."""
    assert isinstance(scorer, Scorer)
    x = torch.rand(3, 3, size, size + 9, generator=torch.manual_seed(0))
    score = scorer.score_tensor(x, PROMPTS)
    assert score.shape == (3,)
    assert score.dtype == torch.float32
    assert not score.requires_grad
    _check_batch_invariance(scorer, size)
    _check_ascent(scorer, x)
    _check_refusals(scorer, x)
    for attribute in ("name", "licence", "citation", "weights", "size"):
        assert getattr(scorer, attribute), attribute


def _check_batch_invariance(scorer: Any, size: int) -> None:
    rng = np.random.default_rng(0)
    sides = ((size, size), (size + 5, size), (size, size))
    pictures = [rng.integers(0, 256, (*s, 3), dtype=np.uint8) for s in sides]
    whole = scorer(pictures, PROMPTS).score
    single = torch.cat([scorer(i, p).score for i, p in zip(pictures, PROMPTS, strict=True)])
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-4)
    crossed = scorer(pictures, PROMPTS, cross=True).score.diagonal()
    torch.testing.assert_close(crossed, whole, rtol=0, atol=1e-4)


def _check_ascent(scorer: Any, x: torch.Tensor) -> None:
    for mode in ("tensor", "exact"):
        scorer.with_preprocess(mode)
        y = x.clone().requires_grad_()
        before = scorer.score_tensor(y, PROMPTS)
        (grad,) = torch.autograd.grad(before.sum(), y)
        assert bool((grad.abs().sum((1, 2, 3)) > 0).all())
        step = grad / grad.abs().amax((1, 2, 3), keepdim=True) * 0.1
        after = scorer.score_tensor((x + step).clamp(0, 1), PROMPTS)
        assert bool((after > before.detach()).all()), (mode, before, after)
    scorer.with_preprocess("tensor")
    assert all(p.grad is None and not p.requires_grad for p in scorer.parameters())
    assert not scorer.training


def _check_refusals(scorer: Any, x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"image 1: floats must lie in \[0, 1\], not nan"):
        scorer([x[0], x[1] * float("nan")], "a cat")
    with pytest.raises(ValueError, match="image 0: floats must lie"):
        scorer([x[0] * 3], "a cat")
    with pytest.raises(ValueError, match="3 prompts for 3 pictures, got 1"):
        scorer.score_tensor(x, ["a cat"])
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        scorer.score_tensor(x[:, :2], PROMPTS)
    if "prompt" in scorer.needs:
        with pytest.raises(ValueError, match="prompt 0 is empty"):
            scorer(x, "")
