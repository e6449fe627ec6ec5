"""Folders of results with small pictures, and votes on them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from diffalign.evaluate.results import Row, prompt_id, write_rows
from diffalign.votes.pictures import gallery_hash
from diffalign.votes.rows import Shown, Vote

START = datetime(2026, 11, 21, 8, tzinfo=UTC)


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def results(
    folder: Path,
    prompts: int = 4,
    models: Sequence[str] = ("base", "dpo"),
    seeds: int = 1,
    scores: Sequence[str] = (),
    seed: int = 0,
) -> list[Row]:
    """Random pictures of 8 x 8 pixels."""
    rng = np.random.default_rng(seed)
    rows = []
    for model in models:
        for prompt in (f"prompt {i}" for i in range(prompts)):
            for s in range(seeds):
                path = f"{model}/{prompt_id(prompt)}/{s}.png"
                data = png(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
                given = {name: float(rng.normal()) for name in scores}
                rows.append(row(prompt, model, s, path, data, given))
    write_rows(folder, rows)
    return rows


def row(
    prompt: str, model: str, seed: int, path: str, data: bytes, scores: dict[str, float], side: int = 8
) -> Row:
    return Row(
        prompt_id=prompt_id(prompt), prompt=prompt, seed=seed, model=model, path=path, width=side,
        height=side, sha256=hashlib.sha256(data).hexdigest(), scores=scores,
    )  # fmt: skip


def vote(
    rows: Sequence[Row],
    prompt: int,
    choice: str,
    *,
    seed: int = 0,
    models: tuple[str, str] = ("base", "dpo"),
    rater: str = "anna",
    left: str = "a",
    at: int = 0,
    **others: object,
) -> Vote:
    """A vote on one prompt's pictures; ``at`` is when, in seconds."""
    found = {r.model: r for r in rows if r.prompt == f"prompt {prompt}" and r.seed == seed}
    a, b = (Shown(model=m, sha256=found[m].sha256) for m in models)
    values = {
        "gallery": gallery_hash(rows), "rater": rater, "time": START + timedelta(seconds=at), "ms": 2000,
        "prompt_id": found[models[0]].prompt_id, "prompt": f"prompt {prompt}", "seed": seed, "a": a, "b": b,
        "left": left, "choice": choice,
    }  # fmt: skip
    return Vote.model_validate(values | others)
