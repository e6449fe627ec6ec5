"""Renderer of the shapes world: scenes of explicit parameters, drawn in batches by signed distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffalign.world.grammar import BACKGROUNDS, HUES, SHAPES, SIZES, Prompt

SIDE = 64
"""Width and height of a picture, in pixels."""
MARGIN = 0.04
MAX_ROTATION = math.radians(15)


@dataclass(kw_only=True)
class Scenes:
    """Parameters of B pictures of up to two objects. Lengths are shares of the side, angles radians."""

    shape: Tensor
    """(B, 2) int64, index into SHAPES; -1 where there is no object."""
    centre: Tensor
    """(B, 2, 2) x and y of the centre in [0, 1]."""
    radius: Tensor
    """(B, 2)."""
    rotation: Tensor
    """(B, 2) within 15 degrees."""
    hsv: Tensor
    """(B, 2, 3) hue in degrees, saturation, value."""
    background_hsv: Tensor
    """(B, 3)."""
    gradient: Tensor
    """(B, 2) change of the background's value over the picture, along x and y."""
    softness: Tensor
    """(B,) width of the edges in pixels."""


def _polygon_star(p: Tensor) -> Tensor:
    """Five-pointed star: fold the angle into one tenth, then the distance to that edge."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(p[..., 0], -p[..., 1])  # 0 points up
    folded = torch.remainder(angle + sector / 2, sector) - sector / 2
    r = p.norm(dim=-1)
    q = torch.stack([r * folded.cos(), r * folded.abs().sin()], -1)
    tip, notch = (1.08, 0.0), (0.47 * math.cos(sector / 2), 0.47 * math.sin(sector / 2))
    edge = (notch[0] - tip[0], notch[1] - tip[1])
    length = math.hypot(*edge)
    return ((q[..., 0] - tip[0]) * edge[1] - (q[..., 1] - tip[1]) * edge[0]) / length


def _polygon_triangle(p: Tensor) -> Tensor:
    x, y = p[..., 0], p[..., 1]
    sides = [x * math.sin(a) - y * math.cos(a) for a in (math.pi / 3, math.pi, -math.pi / 3)]
    return torch.stack(sides).amax(0) - 0.55


def _bars(p: Tensor) -> Tensor:
    a = p.abs()
    x, y = a[..., 0], a[..., 1]
    return torch.minimum(torch.maximum(x - 0.95, y - 0.34), torch.maximum(x - 0.34, y - 0.95))


SIGNED_DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "circle": lambda p: p.norm(dim=-1) - 0.95,
    "square": lambda p: p.abs().amax(-1) - 0.82,
    "triangle": _polygon_triangle,
    "star": _polygon_star,
    "cross": _bars,
    "ring": lambda p: (p.norm(dim=-1) - 0.74).abs() - 0.23,
}
"""Signed distance of each shape at radius 1, negative inside; points are (..., 2) with y downwards."""


def pixel_grid() -> Tensor:
    """(SIDE, SIDE, 2) centres of the pixels as x, y in [0, 1]."""
    axis = (torch.arange(SIDE) + 0.5) / SIDE
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1)


def coverage(shape: Tensor, centre: Tensor, radius: Tensor, rotation: Tensor, softness: Tensor) -> Tensor:
    """(B, SIDE, SIDE) share of each pixel that the object covers; all inputs have B rows, see Scenes for
    units.
    """
    p = pixel_grid() - centre[:, None, None]
    c, s = rotation.cos()[:, None, None], rotation.sin()[:, None, None]
    p = (
        torch.stack([c * p[..., 0] + s * p[..., 1], c * p[..., 1] - s * p[..., 0]], -1)
        / radius[:, None, None, None]
    )
    distance = torch.ones(p.shape[:-1])
    for index, name in enumerate(SHAPES):
        rows = shape == index
        distance[rows] = SIGNED_DISTANCES[name](p[rows])
    pixels = distance * radius[:, None, None] * SIDE
    return (0.5 - pixels / softness[:, None, None]).clamp(0, 1) * (shape >= 0)[:, None, None]


def hsv_to_rgb(hsv: Tensor) -> Tensor:
    """(..., 3) hue in degrees, saturation and value in [0, 1] to (..., 3) red, green, blue in [0, 1]."""
    k = torch.remainder(torch.tensor([5.0, 3.0, 1.0]) + hsv[..., :1] / 60, 6)
    return hsv[..., 2:] * (1 - hsv[..., 1:2] * torch.minimum(k, 4 - k).clamp(0, 1))


def render(scenes: Scenes) -> Tensor:
    """Draw (B, 3, SIDE, SIDE) pictures in [0, 1]; the second object lies over the first."""
    grid = pixel_grid() - 0.5
    value = scenes.background_hsv[:, None, None, 2] + (grid * scenes.gradient[:, None, None]).sum(-1)
    hsv = scenes.background_hsv[:, None, None].expand(-1, SIDE, SIDE, -1)
    picture = hsv_to_rgb(torch.cat([hsv[..., :2], value.clamp(0, 1)[..., None]], -1))
    for k in range(2):
        object_ = (scenes.shape[:, k], scenes.centre[:, k], scenes.radius[:, k], scenes.rotation[:, k])
        alpha = coverage(*object_, scenes.softness)[..., None]
        picture = torch.lerp(picture, hsv_to_rgb(scenes.hsv[:, k])[:, None, None], alpha)
    return picture.permute(0, 3, 1, 2).contiguous()


def sample_scenes(prompts: Sequence[Prompt], rng: np.random.Generator) -> Scenes:
    """Draw one scene for each prompt; what a prompt leaves open is drawn at random."""
    n = len(prompts)
    double = np.array([p.relation is not None for p in prompts])
    radius = np.stack([_radii(prompts, rng), rng.uniform(0.18, 0.22, n)], 1)
    radius[double, 0] = rng.uniform(0.18, 0.22, int(double.sum()))
    shape = np.array([[SHAPES.index(s) for s in (*p.shapes, p.shapes[0])[:2]] for p in prompts])
    shape[~double, 1] = -1
    return Scenes(
        shape=torch.tensor(shape),
        centre=_tensor(_centres(prompts, radius, rng)),
        radius=_tensor(radius),
        rotation=_tensor(rng.uniform(-MAX_ROTATION, MAX_ROTATION, (n, 2))),
        hsv=_tensor(_object_colours(prompts, rng)),
        background_hsv=_tensor(_background_colours(prompts, rng)),
        gradient=_tensor(rng.uniform(-0.12, 0.12, (n, 2)) * (rng.random((n, 1)) < 0.5)),
        softness=_tensor(rng.uniform(0.8, 2.0, n)),
    )


def draw(prompts: Sequence[Prompt], rng: np.random.Generator) -> Tensor:
    """Render one random picture for each prompt: (B, 3, SIDE, SIDE) in [0, 1]."""
    return render(sample_scenes(prompts, rng))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.tensor(array, dtype=torch.float32)


def _radii(prompts: Sequence[Prompt], rng: np.random.Generator) -> np.ndarray:
    bounds = np.array([SIZES[p.size] if p.size else (0.18, 0.38) for p in prompts])
    return rng.uniform(bounds[:, 0], bounds[:, 1])


def _object_colours(prompts: Sequence[Prompt], rng: np.random.Generator) -> np.ndarray:
    hue = np.array([[HUES[c] for c in (*p.colours, p.colours[0])[:2]] for p in prompts], dtype=float)
    shape = hue.shape
    return np.stack(
        [hue + rng.uniform(-6, 6, shape), rng.uniform(0.6, 1, shape), rng.uniform(0.55, 1, shape)], -1
    )


def _background_colours(prompts: Sequence[Prompt], rng: np.random.Generator) -> np.ndarray:
    greys = {"white": (0.94, 1.0), "gray": (0.45, 0.55), "black": (0.0, 0.08)}
    rows = []
    for p in prompts:
        free = [b for b in BACKGROUNDS if b not in p.colours]
        name = p.background or free[int(rng.integers(len(free)))]
        if name in greys:
            rows.append((0.0, 0.0, rng.uniform(*greys[name])))
        else:
            rows.append((HUES[name] + rng.uniform(-6, 6), rng.uniform(0.45, 0.75), rng.uniform(0.78, 0.95)))
    return np.array(rows)


def _centres(prompts: Sequence[Prompt], radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Anywhere inside the picture; two objects stand apart along their relation's axis."""
    low, high = radius + MARGIN, 1 - radius - MARGIN
    centre = rng.uniform(low[..., None], high[..., None], (*radius.shape, 2))
    for i, p in enumerate(prompts):
        if p.relation is None:
            continue
        axis = 0 if p.relation in ("left of", "right of") else 1
        first = 0 if p.relation in ("left of", "above") else 1
        gap = rng.uniform(radius[i].sum() + 0.04, high[i].min() - low[i].max())
        start = rng.uniform(low[i].max(), high[i].min() - gap)
        centre[i, first, axis], centre[i, 1 - first, axis] = start, start + gap
    return centre
