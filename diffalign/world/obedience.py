"""How often a pipeline of the shapes world draws what its prompt says, and the model cards that state it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline

from diffalign.train.run import write_text
from diffalign.world.grammar import Prompt, double_prompts, sample_prompts, single_prompts
from diffalign.world.oracle import measure, obeys
from diffalign.world.shapes import draw
from diffalign.world.velocity import velocity_errors

NOTES = "pretraining.json"
"""File beside the exported pipelines that says how far each was trained, and how well it obeys."""
SAMPLING = {"unet": (20, 4.0), "dit": (25, 5.0)}
"""Steps and guidance of every stated obedience."""

CARD = """---
library_name: diffusers
license: apache-2.0
tags: [text-to-image]
---

# {title}

A tiny {kind} of the shapes world, made from nothing by
`training/pretrain_shapes.py` in {steps} steps. It draws one or two coloured shapes of 64 x 64 pixels,
and is there to try preference alignment on a laptop.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("samples/shapes/{name}")
picture = pipeline("a large red circle", height=64, width=64{extra}).images[0]
```
{advice}
Share of pictures, one for each held-out prompt, in which shape, colour and background (and the relation
of two objects) are as the prompt says, measured on the pixels; {sampling} steps, guidance {guidance:g}:

| prompts | obedience |
|---|---|
{rows}
{errors}"""
ERRORS = """
Mean squared velocity errors of this MMDiT and of the UNet beside it (turned into velocities), on the same
noisy latents of pictures that neither has seen; sigma is the share of noise:

| sigma | MMDiT | UNet | ratio |
|---|---|---|---|
{rows}
"""
ADVICE = """
Pass `max_sequence_length=32`: the pipeline's default pads the T5 prompt to 256 tokens without a mask, many
times the tokens that the prompts of this world need.
"""


@torch.no_grad()
def obedience(pipeline: Any, prompts: Sequence[Prompt], seed: int = 0, length: int = 32) -> float:
    """Share of generated pictures (one per prompt) that the oracle finds to obey: shape, colour, background,
    relation.

    Args:
        pipeline: of the shapes world, Stable-Diffusion or SD3 type.
        prompts: what to draw.
        seed: of the noise.
        length: text length of T5; only SD3 pipelines have one.
    """
    pictures = []
    dit = hasattr(pipeline, "transformer")
    steps, guidance = SAMPLING["dit" if dit else "unet"]
    extra = {"max_sequence_length": length} if dit else {}
    for i in range(0, len(prompts), 40):
        out = pipeline(
            [str(p) for p in prompts[i : i + 40]],
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(seed + i),
            output_type="pt",
            **extra,
        )
        pictures.append(out.images)
    return float(obeys(measure(torch.cat(pictures)), list(prompts)).all.float().mean())


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, pictures: int = 2000) -> dict[str, float]:
    """Share of reconstructions that the oracle reads right (``right``), and the mean absolute error in 1/255.

    The pictures are fresh ones of held-out one-object prompts.
    """
    rng, right, errors = np.random.default_rng(123), [], []
    for n in [100] * (pictures // 100) + [pictures % 100] * (pictures % 100 > 0):
        prompts = sample_prompts(n, rng, "heldout", double_share=0.0)
        x = draw(prompts, rng)
        y = vae.decode(vae.encode(x * 2 - 1).latent_dist.mean).sample / 2 + 0.5
        right.append(obeys(measure(y.clamp(0, 1)), prompts).all.float())
        errors.append((y - x).abs().mean((1, 2, 3)) * 255)
    found = {"right": torch.cat(right), "error_255": torch.cat(errors)}
    return {name: float(values.mean()) for name, values in found.items()} | {"pictures": float(pictures)}


def examine_vae(out: Path, pictures: int = 2000) -> dict[str, float]:
    """Note the reconstructions of the VAE that both exported pipelines carry; see ``reconstruction``."""
    found = reconstruction(AutoencoderKL.from_pretrained(out / "unet" / "vae").float(), pictures)
    note(out, "vae", {"examined": found}, add=True)
    return found


def examine(out: Path, name: str, prompts: int = 500) -> dict[str, float]:
    """State the obedience of the exported pipeline ``name``, in the notes and in its model card; of the VAE
    how well it reconstructs, in the notes.

    Args:
        out: folder of the pipelines.
        name: "vae", "unet" or "dit".
        prompts: held-out prompts of one object; of two objects there are two fifths as many.

    Returns:
        What was measured: ``one_object``, ``two_objects``, and for "dit" also ``one_object_256`` at T5's
        default text length of 256.
    """
    if name == "vae":
        return examine_vae(out)
    pipeline = DiffusionPipeline.from_pretrained(out / name).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    single, double = single_prompts("heldout")[:prompts], double_prompts("heldout")[: prompts * 2 // 5]
    found = {
        "one_object": obedience(pipeline, single),
        "two_objects": obedience(pipeline, double),
        "prompts": float(len(single)),
        "prompts_two": float(len(double)),
    }
    if name == "dit":
        found["one_object_256"] = obedience(pipeline, single, length=256)
    note(out, name, {"examined": found}, add=True)
    if name == "dit" and (out / "unet").exists():
        note(out, name, {"velocity_errors": velocity_errors(out)}, add=True)
    write_card(out, name)
    return found


def note(out: Path, name: str, what: dict[str, Any], *, add: bool = False) -> None:
    """Replace, or add to, what is noted of one network beside the exported pipelines."""
    file = out / NOTES
    notes = json.loads(file.read_text()) if file.exists() else {}
    notes[name] = (notes.get(name, {}) if add else {}) | what
    write_text(file, json.dumps(notes, indent=2, sort_keys=True) + "\n")


def write_card(out: Path, name: str) -> None:
    """Write the model card of the exported pipeline ``name`` from the notes."""
    notes = json.loads((out / NOTES).read_text())[name]
    dit, found = name == "dit", notes["examined"]
    rows = [("one object", "one_object", "prompts"), ("two objects", "two_objects", "prompts_two")]
    if dit:
        rows.append(("one object, text length 256", "one_object_256", "prompts"))
    card = CARD.format(
        title=f"Shapes {'MMDiT' if dit else 'UNet'}",
        kind="Stable Diffusion 3 (MMDiT, flow)" if dit else "Stable Diffusion (UNet, eps)",
        steps=notes["step"],
        name=name,
        extra=", max_sequence_length=32" if dit else "",
        advice=ADVICE if dit else "",
        sampling=SAMPLING[name][0],
        guidance=SAMPLING[name][1],
        rows="\n".join(f"| {found[n]:.0f} of {label} | {found[key]:.1%} |" for label, key, n in rows),
        errors=_errors(notes.get("velocity_errors", {})),
    )
    write_text(out / name / "README.md", card)


def _errors(found: dict[str, dict[str, float]]) -> str:
    rows = [
        f"| {sigma} | {e['dit']:.4f} | {e['unet']:.4f} | {e['dit'] / e['unet']:.2f} |"
        for sigma, e in found.items()
    ]
    return ERRORS.format(rows="\n".join(rows)) if rows else ""
