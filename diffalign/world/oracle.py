"""What a picture of the shapes world truly shows, measured on its pixels alone, and whether it obeys its
prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.world.grammar import BACKGROUNDS, COLOURS, HUES, SHAPES, SIZES, Prompt
from diffalign.world.shapes import MAX_ROTATION, SIDE, coverage

CONTRAST = 0.17
"""RGB distance from the background from which a pixel may belong to an object."""
MIN_AREA = 50
"""Smallest area of an object, in pixels (the smallest star has 130)."""
MIN_OVERLAP = 0.80
"""Overlap (intersection over union) with the best template below which a blob is no shape."""
MAX_EDGE_WIDTH = 6.0
"""Width of the edge in pixels above which a blob is too blurred to be a shape."""
MAX_ROUGHNESS = 0.10
"""RGB deviation of the border from a linear gradient above which there is no background to speak of."""
CROP = 32


@dataclass(kw_only=True)
class Measurements:
    """What B pictures show. Objects are sorted by area, largest first; absent ones have shape -1."""

    shape: Tensor
    """(B, 2) index into SHAPES, -1 for no recognisable shape."""
    overlap: Tensor
    """(B, 2) overlap with the best template, 0 to 1."""
    colour: Tensor
    """(B, 2) index into COLOURS, -1 for none of them."""
    centre: Tensor
    """(B, 2, 2) x and y in [0, 1]."""
    radius: Tensor
    """(B, 2) share of the side."""
    value: Tensor
    """(B, 2) HSV value of the object (its shade: dark 0, light 1)."""
    saturation: Tensor
    """(B, 2) HSV saturation of the object."""
    background: Tensor
    """(B,) index into BACKGROUNDS, -1 where the border has no one colour."""
    background_rgb: Tensor
    """(B, 3)."""
    roughness: Tensor
    """(B,) deviation of the border from one flat colour, in RGB units."""
    edge_width: Tensor
    """(B,) width of the largest object's edge in pixels."""
    objects: Tensor
    """(B,) number of recognisable objects."""

    @property
    def recognised(self) -> Tensor:
        """(B,) bool: the picture shows at least one recognisable shape on a background."""
        return (self.objects > 0) & (self.background >= 0)


@dataclass(frozen=True, kw_only=True)
class Obedience:
    """(B,) bools: what of each prompt its picture fulfils."""

    shape: Tensor
    colour: Tensor
    background: Tensor
    size: Tensor
    relation: Tensor

    @property
    def all(self) -> Tensor:
        """(B,) shape, colour, background and relation right (size is reported apart)."""
        return self.shape & self.colour & self.background & self.relation


@torch.no_grad()
def measure(pictures: Tensor, chunk: int = 512) -> Measurements:
    """Measure (B, 3, 64, 64) pictures in [0, 1].

    Raises:
        ValueError: the shape is not (B, 3, 64, 64).
    """
    if pictures.ndim != 4 or pictures.shape[1:] != (3, SIDE, SIDE):
        raise ValueError(
            f"the oracle reads (B, 3, {SIDE}, {SIDE}) pictures in [0, 1], not {tuple(pictures.shape)}"
        )
    full = pictures if len(pictures) else torch.zeros(1, 3, SIDE, SIDE)
    parts = [_measure_chunk(p.float()) for p in full.split(chunk)]
    joined = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Measurements)}
    return Measurements(**{name: values[: len(pictures)] for name, values in joined.items()})


def object_masks(pictures: Tensor) -> Tensor:
    """Where the objects are that ``measure`` measures, in its order.

    Args:
        pictures: (B, 3, 64, 64) in [0, 1].

    Returns:
        (B, 2, 64, 64) bool; all False where there is no second object, or none.
    """
    plane, _, _ = _background(pictures)
    return _objects((pictures - plane).norm(dim=1)).bool()


def obeys(found: Measurements, prompts: Sequence[Prompt]) -> Obedience:
    """Compare B measurements with their B prompts; what a prompt leaves open is always fulfilled."""
    rows = [_obeys_one(found, i, p) for i, p in enumerate(prompts)]
    columns = torch.tensor(rows, dtype=torch.bool).reshape(-1, 5).unbind(1)
    names = ("shape", "colour", "background", "size", "relation")
    return Obedience(**dict(zip(names, columns, strict=True)))


def _obeys_one(found: Measurements, i: int, prompt: Prompt) -> tuple[bool, bool, bool, bool, bool]:
    seen = [
        (SHAPES[s], COLOURS[c])
        for s, c in zip(found.shape[i].tolist(), found.colour[i].tolist(), strict=True)
        if s >= 0 <= c
    ]
    asked = list(zip(prompt.shapes, prompt.colours, strict=True))
    shape = sorted(s for s, _ in seen) == sorted(prompt.shapes) and int(found.objects[i]) == len(asked)
    colour = sorted(seen) == sorted(asked) if shape else sorted(c for _, c in seen) == sorted(prompt.colours)
    name = BACKGROUNDS[int(found.background[i])] if found.background[i] >= 0 else None
    background = name is not None and prompt.background in (None, name)
    size = True
    if prompt.size:
        lowest, highest = SIZES[prompt.size]
        size = lowest - 0.02 <= float(found.radius[i, 0]) <= highest + 0.02
    return shape, colour, background, size, _relation_holds(found, i, prompt) if prompt.relation else True


def _relation_holds(found: Measurements, i: int, prompt: Prompt) -> bool:
    """True where the object that was named first lies on the side that was asked."""
    colours = found.colour[i].tolist()
    wanted = [COLOURS.index(c) for c in prompt.colours]
    if sorted(colours) != sorted(wanted):
        return False
    first, second = (found.centre[i, colours.index(c)] for c in wanted)
    dx, dy = (second - first).tolist()
    side = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[prompt.relation or ""]
    return bool(side > max(abs(dx), abs(dy)) * 0.5)


def _measure_chunk(x: Tensor) -> Measurements:
    plane, roughness, flatness = _background(x)
    distance = (x - plane).norm(dim=1)  # (B, H, W)
    masks = _objects(distance)  # (B, 2, H, W)
    parts = [_measure_object(x, distance, masks[:, k], masks[:, 1 - k]) for k in range(2)]
    rgb = plane.mean((2, 3)).clamp(0, 1)
    background = torch.where(roughness < MAX_ROUGHNESS, _name(rgb, BACKGROUNDS), -1)
    shape = torch.stack([p["shape"] for p in parts], 1)
    both = {k: torch.stack([p[k] for p in parts], 1) for k in parts[0] if k != "edge_width"}
    return Measurements(
        **both,
        background=background,
        background_rgb=rgb,
        roughness=flatness,
        edge_width=parts[0]["edge_width"],
        objects=(shape >= 0).sum(1),
    )


@cache
def _plane_fit() -> tuple[Tensor, Tensor, Tensor]:
    """Border pixel indices, their pseudo-inverse, and the full design matrix of the linear background."""
    axis = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    design = torch.stack([torch.ones_like(x), x, y], -1).reshape(-1, 3)
    border = torch.ones(SIDE, SIDE, dtype=torch.bool)
    border[2:-2, 2:-2] = False
    index = border.flatten().nonzero().squeeze(1)
    return index, torch.linalg.pinv(design[index]), design


def _background(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a linear gradient to the border: (B, 3, H, W) plane, (B,) deviation from it, (B,) deviation from
    flat.
    """
    index, inverse, design = _plane_fit()
    border = x.flatten(2)[..., index]  # (B, 3, P)
    coefficients = border @ inverse.T
    plane = coefficients @ design.T
    rest = (border - plane[..., index]).square().sum(1).mean(1).sqrt()
    flat = (border - border.mean(2, keepdim=True)).square().sum(1).mean(1).sqrt()
    return plane.reshape(x.shape), rest, flat


def _components(mask: Tensor) -> Tensor:
    """Label the connected regions (4 neighbours) of (B, H, W) masks by their largest index; 0 is outside.

    Labels spread over whole runs of a row, then of a column, until nothing changes: a few rounds for shapes.
    """
    rows, columns = _runs(mask), _runs(mask.mT)
    labels = mask * torch.arange(1, mask[0].numel() + 1).reshape(mask.shape[1:])
    while True:
        spread = _run_maximum(_run_maximum(labels, rows).mT, columns).mT
        if torch.equal(spread, labels):
            return labels
        labels = spread


def _runs(mask: Tensor) -> Tensor:
    """(B, H, W) numbers of the runs of set pixels along the last axis, each its own; 0 is outside."""
    start = mask & ~F.pad(mask, (1, 0))[..., :-1]
    return start.flatten(1).cumsum(1).reshape(mask.shape) * mask


def _run_maximum(labels: Tensor, runs: Tensor) -> Tensor:
    """(B, H, W) labels, each replaced by the largest one of its run."""
    flat, where = labels.flatten(1), runs.flatten(1)
    best = torch.zeros_like(flat).scatter_reduce_(1, where, flat, "amax")
    return best.gather(1, where).reshape(labels.shape)


def _objects(distance: Tensor) -> Tensor:
    """(B, 2, H, W) float masks of the two largest regions that stand out, by distances (B, H, W)."""
    return _two_largest(_components(distance > CONTRAST))


def _two_largest(labels: Tensor) -> Tensor:
    """(B, 2, H, W) float masks of the two largest regions, empty where a region is smaller than MIN_AREA."""
    flat = labels.flatten(1)
    counts = torch.zeros(len(flat), SIDE * SIDE + 1).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=torch.float)
    )
    counts[:, 0] = 0
    area, label = counts.topk(2, dim=1)
    masks = flat[:, None] == label[..., None]
    return (masks & (area >= MIN_AREA)[..., None]).float().reshape(-1, 2, SIDE, SIDE)


def _measure_object(x: Tensor, distance: Tensor, mask: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Shape, colour, place and looks of one region per picture; all values have B rows."""
    share = (distance / _level(distance, mask)[:, None, None]).clamp(0, 1)  # of each pixel that is covered
    cover = share * _grow(mask, 1)
    area = cover.sum((1, 2)).clamp(min=1e-6)
    shape, overlap = _classify(cover)
    edge_width = _edge_width(share * _grow(mask, 6) * (1 - _grow(other, 2)))
    shape = torch.where(edge_width <= MAX_EDGE_WIDTH, shape, -1)
    rgb = (x * (cover > 0.9)[:, None]).sum((2, 3)) / (cover > 0.9).sum((1, 2)).clamp(min=1)[:, None]
    value = rgb.amax(1)
    centre, _ = _bounds(cover)
    return {
        "shape": shape,
        "overlap": overlap,
        "colour": torch.where(shape >= 0, _name(rgb, COLOURS), -1),
        "centre": centre,
        "radius": (area / _unit_areas()[shape.clamp(min=0)]).sqrt() / SIDE,
        "value": value,
        "saturation": (value - rgb.amin(1)) / value.clamp(min=1e-6),
        "edge_width": edge_width,
    }


def _grow(mask: Tensor, pixels: int) -> Tensor:
    """(B, H, W) masks grown by so many pixels."""
    return F.max_pool2d(mask[:, None], 2 * pixels + 1, 1, pixels)[:, 0]


def _level(distance: Tensor, mask: Tensor) -> Tensor:
    """(B,) contrast of a region: the 70 % quantile of its distance from the background."""
    inside = torch.where(mask > 0, distance, torch.nan).flatten(1)
    return torch.nanquantile(inside, 0.7, dim=1).nan_to_num(1.0).clamp(min=1e-6)


def _bounds(cover: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (B, 2) and half the longer side (B,) of the bounding box of coverages, as shares of the side."""
    ends = []
    for dim in (1, 2):  # the maximum over rows gives the profile along x, over columns along y
        profile = cover.amax(dim)
        first = _crossing(profile)
        last = SIDE - _crossing(profile.flip(1))
        ends.append((first, last))
    centre = torch.stack([(a + b) / 2 for a, b in ends], 1) / SIDE
    return centre, torch.stack([(b - a) / 2 for a, b in ends], 1).amax(1).clamp(min=1.0) / SIDE


def _crossing(profile: Tensor) -> Tensor:
    """(B,) position in pixels where (B, W) profiles first rise through a half."""
    above = profile >= 0.5
    index = above.float().argmax(1)
    here = profile.gather(1, index[:, None])[:, 0]
    return torch.where(above.any(1), index + 1 - here, 0.0)


def _normalise(cover: Tensor) -> Tensor:
    """(B, CROP * CROP) coverages with the bounding box blown up to the whole crop."""
    centre, half = _bounds(cover)
    axis = (torch.arange(CROP) + 0.5) / CROP * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack([x, y], -1)[None] * half[:, None, None, None] + centre[:, None, None]
    crop = F.grid_sample(cover[:, None], grid * 2 - 1, align_corners=False, padding_mode="zeros")
    return crop.flatten(1)


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Normalised coverages of every shape at 11 rotations and 2 sizes, and their shape indices."""
    rotations = torch.linspace(-MAX_ROTATION, MAX_ROTATION, 11)
    radii = torch.tensor([0.2, 0.34])
    shape, rotation, radius = (
        t.flatten() for t in torch.meshgrid(torch.arange(float(len(SHAPES))), rotations, radii, indexing="ij")
    )
    cover = coverage(
        shape, torch.full((len(shape), 2), 0.5), radius, rotation, torch.full((len(shape),), 1.3)
    )
    return _normalise(cover), shape.long()


def _classify(cover: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) index of the best shape (-1 below MIN_OVERLAP) and its overlap."""
    templates, shape = _templates()
    crops = _normalise(cover)
    distance = torch.cdist(crops, templates, p=1)  # |a - b| = max - min and a + b = max + min
    total = crops.sum(1, keepdim=True) + templates.sum(1)
    overlap, best = ((total - distance) / (total + distance).clamp(min=1e-6)).max(1)
    overlap = torch.where(cover.sum((1, 2)) >= MIN_AREA, overlap, 0.0)
    return torch.where(overlap >= MIN_OVERLAP, shape[best], -1), overlap


@cache
def _unit_areas() -> Tensor:
    """(S,) area of each shape at radius 1 (in units of the squared radius)."""
    n = len(SHAPES)
    r = torch.full((n,), 0.4)
    cover = coverage(torch.arange(n), torch.full((n, 2), 0.5), r, torch.zeros(n), torch.full((n,), 1.0))
    return cover.sum((1, 2)) / (0.4 * SIDE) ** 2


def _edge_width(cover: Tensor) -> Tensor:
    """(B,) edge width in pixels: for a linear ramp of width w, sum 6 a (1 - a) over its perimeter is w."""
    dx, dy = torch.gradient(cover, dim=(2, 1))
    perimeter = (dx.square() + dy.square()).sqrt().sum((1, 2)).clamp(min=1e-6)
    return (6 * cover * (1 - cover)).sum((1, 2)) / perimeter


def _name(rgb: Tensor, names: Sequence[str]) -> Tensor:
    """(B,) index into ``names`` of (B, 3) colours, or -1."""
    value, low = rgb.amax(1), rgb.amin(1)
    saturation = (value - low) / value.clamp(min=1e-6)
    hue = hue_of(rgb)
    gaps = torch.stack([((hue - h + 180) % 360 - 180).abs() for h in HUES.values()], 1)
    index = torch.tensor([names.index(c) for c in HUES])[gaps.argmin(1)]
    grey = (saturation < 0.22) | (value < 0.25)
    shades = torch.where(
        value < 0.25,
        _index(names, "black"),
        torch.where(value > 0.78, _index(names, "white"), _index(names, "gray")),
    )
    return torch.where(grey, shades, index)


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else -1


def hue_of(rgb: Tensor) -> Tensor:
    """(B,) hue in degrees of (B, 3) colours."""
    r, g, b = rgb.unbind(1)
    x, y = r - (g + b) / 2, (g - b) * 3**0.5 / 2
    return torch.rad2deg(torch.atan2(y, x)) % 360
