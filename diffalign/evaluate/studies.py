"""Two studies that need pictures of their own: changed initial noise, and paths from one noise to another."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.data.keys import content_key
from diffalign.evaluate.generate import generate, picture_seed
from diffalign.evaluate.measure import Scores, Store, Values, index_of
from diffalign.evaluate.models import Model, identity, open_model, share_device
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.request import Request, RequestError, scorer_name
from diffalign.evaluate.results import prompt_id
from diffalign.evaluate.stats import Floats
from diffalign.label.judges import load_judge
from diffalign.label.many import Share
from diffalign.policy import Policy

Change = Callable[[Tensor], Tensor]


def read_shift(text: str) -> tuple[str, float]:
    """``scale=1.1`` (the initial noise times 1.1) or ``mean=0.1`` (plus 0.1 of its s.d.).

    Raises:
        RequestError: neither of them, or a scale that is not above 0.
    """
    kind, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind not in ("scale", "mean") or not math.isfinite(value) or (kind == "scale" and value <= 0):
        raise RequestError(f"shift {text!r} is not understood: give scale=1.1 or mean=0.1, for example")
    return kind, value


@contextmanager
def initial_noise(pipeline: Any, change: Change) -> Iterator[None]:
    """Inside, the pipeline starts from ``change`` of the (B, ...) noise that it drew."""
    original = pipeline.prepare_latents

    def prepare(*given: Any, **named: Any) -> Any:
        found = original(*given, **named)  # FLUX gives the places of the patches besides
        return (change(found[0]), *found[1:]) if isinstance(found, tuple) else change(found)

    pipeline.prepare_latents = prepare
    try:
        yield
    finally:
        del pipeline.prepare_latents


def noise_sd(pipeline: Any) -> float:
    """s.d. of the noise that a pipeline starts from; 1 for rectified flow."""
    scheduler = pipeline.scheduler
    return float(scheduler.init_noise_sigma) if hasattr(scheduler, "init_noise_sigma") else 1.0


def shifted(policy: Policy, text: str) -> Change:
    """The change that ``read_shift`` reads."""
    kind, value = read_shift(text)
    if kind == "scale":
        return lambda x: x * value
    return lambda x: x + value * noise_sd(policy.pipeline)


def path(policy: Policy, ends: Sequence[int], points: int) -> Change:
    """Turn B rows of the first end's noise into ``points`` rows on the arc to that of the second end.

    Rows of one prompt stand together; cosine and sine keep the variance of the noise.
    """

    def change(x: Tensor) -> Tensor:
        angle = torch.linspace(0, math.pi / 2, points, device=x.device, dtype=x.dtype)
        shape = (points, *[1] * (x.ndim - 1))
        parts = []
        for rows, end in zip(x.split(points), ends, strict=True):
            generator = torch.Generator(x.device).manual_seed(end)
            other = torch.randn(rows.shape[1:], generator=generator, device=x.device, dtype=x.dtype)
            parts.append(
                angle.cos().view(shape) * rows + angle.sin().view(shape) * other * noise_sd(policy.pipeline)
            )
        return torch.cat(parts)

    return change


def istd(pictures: Tensor) -> float:
    """Interpolation standard deviation of (K, C, H, W) pictures in [0, 1] along a path, K at least 3.

    It is the s.d. of the distances (root mean square over pixels) between neighbours: 0 where pictures change
    evenly (Guo et al. 2023, arXiv:2312.04410).
    """
    steps = (pictures[1:] - pictures[:-1]).double().flatten(1).square().mean(1).sqrt()
    return float(steps.std(correction=0))


def run_studies(request: Request, share: Share) -> None:
    """Do what is missing of this process's batches."""
    if not request.shifts and not request.smoothness:
        return
    mine = request.batches[share.rank :: share.world]
    judge = load_judge(request.scorers[0], share_device())
    scores = Scores(name=scorer_name(request.scorers[0]), judge=judge)
    for model in request.models:
        policy: Policy | None = None
        for label in labels(request):
            store = Store(request.output, study_id(request, model, label))
            for batch in mine:
                if all(prompt_id(p.prompt) in store.found for p in batch):
                    continue
                if policy is None:
                    policy = open_model(model, request.models[0], request.text_length, request.precision)
                values = _study(request, policy, batch, label, scores)
                keys = [prompt_id(p.prompt) for p in batch]
                store.add(list(zip(keys, values, strict=True)), share)


def labels(request: Request) -> list[str]:
    """What is studied: the shifts, and ``path``."""
    return [*request.shifts, *(["path"] if request.smoothness else [])]


def study_id(request: Request, model: Model, label: str) -> str:
    """Digest of all that decides a study's numbers but the prompt."""
    what: dict[str, Any] = {
        "label": label,
        "weights": identity(model, request.models[0]),
        "precision": request.precision,
    }
    what |= {"sampling": asdict(request.sampling), "text_length": request.text_length}
    if label == "path":
        what |= {"points": request.smoothness}
    else:
        what |= {"scorer": index_of(request)[scorer_name(request.scorers[0])], "seeds": request.seeds}
    return content_key("study", json.dumps(what, sort_keys=True))


def _study(
    request: Request, policy: Policy, batch: Sequence[EvalPrompt], label: str, scores: Scores
) -> list[Values]:
    prompts, sampling = [p.prompt for p in batch], request.sampling
    if label != "path":
        with initial_noise(policy.pipeline, shifted(policy, label)):
            pictures = generate(policy, prompts, range(request.seeds), sampling)
        return scores(pictures.float() / 255, prompts)
    values: list[Values] = []
    for prompt in prompts:
        ends = [picture_seed(prompt, 1, sampling.noise)]
        with initial_noise(policy.pipeline, path(policy, ends, request.smoothness)):
            pictures = policy.generate(
                [prompt] * request.smoothness,
                [picture_seed(prompt, 0, sampling.noise)] * request.smoothness,
                steps=sampling.steps, guidance=sampling.guidance, side=sampling.side,
            )  # fmt: skip
        values.append({"istd": [istd(pictures.cpu())]})
    return values


def study_scores(request: Request, label: str) -> Floats:
    """(M, P, S) primary scores under a shift, or (M, P, 1) ISTD for ``path``."""
    name = "istd" if label == "path" else "score"
    stores = [Store(request.output, study_id(request, m, label)).found for m in request.models]
    return np.array([[found[prompt_id(p.prompt)][name] for p in request.prompts] for found in stores])
