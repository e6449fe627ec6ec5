"""Where names go in a picture so that none covers another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FAR = (1.0, 2.0, 3.5, 5.0, 7.0)
"""Gaps between a point and its name that are tried, in multiples of the least."""
TURNS = (0, 4, 1, 7, 3, 5, 2, 6)
"""Eighths of a turn at which a name is tried beside its point: right, left, and then the others."""


@dataclass(frozen=True, kw_only=True)
class Box:
    """An upright rectangle, in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, x: float, y: float, width: float, height: float) -> Box:
        """The rectangle of this size about (x, y)."""
        return cls(left=x - width / 2, bottom=y - height / 2, right=x + width / 2, top=y + height / 2)

    @property
    def centre(self) -> tuple[float, float]:
        """Its middle."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    @property
    def area(self) -> float:
        """Its area; 0 where a side is negative, as that of two boxes that do not meet."""
        return max(0.0, self.right - self.left) * max(0.0, self.top - self.bottom)

    def shared(self, other: Box) -> float:
        """Area that both cover."""
        return Box(
            left=max(self.left, other.left), bottom=max(self.bottom, other.bottom),
            right=min(self.right, other.right), top=min(self.top, other.top),
        ).area  # fmt: skip


def apart(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as possible (least squares), in their order, until all are a gap apart."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[list[float]] = []
    for rank, i in enumerate(order):  # without the gaps: blocks that rise, by pooling those that do not
        blocks.append([values[i] - rank * gap])
        while len(blocks) > 1 and statistics.fmean(blocks[-2]) > statistics.fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    levels = [statistics.fmean(block) for block in blocks for _ in block]
    moved = {i: level + rank * gap for rank, (i, level) in enumerate(zip(order, levels, strict=True))}
    return [moved[i] for i in range(len(values))]


def beside(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    inside: Box,
    taken: Sequence[Box],
    least: float,
) -> list[Box]:
    """A box for the name of each point, close to it, where it covers least of what is there already.

    Args:
        points: (x, y) of each.
        sizes: (width, height) of each name.
        inside: boxes should not leave it.
        taken: what is not to be covered, such as the points themselves.
        least: smallest gap between a point and its name.
    """
    found: list[Box] = []
    for (x, y), size in zip(points, sizes, strict=True):
        tried = [_put(x, y, size, least * far, turn) for far in FAR for turn in TURNS]
        there = [*taken, *found]
        found.append(min(tried, key=lambda b: _cost(b, there, inside)))
    return found


def _put(x: float, y: float, size: tuple[float, float], gap: float, turn: int) -> Box:
    """A box of this size beside (x, y), in the direction of that many eighths of a turn."""
    across, up = math.cos(turn * math.pi / 4), math.sin(turn * math.pi / 4)
    width, height = size
    return Box.around(x + across * (gap + width / 2), y + up * (gap + height / 2), width, height)


def _cost(box: Box, there: Sequence[Box], inside: Box) -> float:
    """Area that is covered, where that outside counts for much; the first of equal ones is taken."""
    return sum(box.shared(other) for other in there) + 100 * (box.area - box.shared(inside))
