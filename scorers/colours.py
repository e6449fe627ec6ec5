"""Colours as people name them: CIELAB, and the nearest of a set of anchors."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

WHITE_XY = (0.3127, 0.3290)
"""Chromaticity of the illuminant D65, CIE 1931 observer of 2 degrees."""
RGB_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
"""IEC 61966-2-1, as rounded there."""
BERLIN_KAY: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "pink": (65.95367198120272, 43.84908256780507, -7.0539306285842045),
        "red": (35.557586965551614, 57.09030710793049, 35.77181642751707),
        "yellow": (80.52685091980482, 8.569204329900826, 64.45442429511716),
        "green": (45.87012461731727, -55.739424536022426, 23.659187142358668),
        "blue": (45.870124617317266, -6.692494936241, -40.21542115196934),
        "purple": (25.30712316697968, 35.01775758296012, -31.09973278822096),
        "black": (0.0, 0.0, 0.0),
        "white": (100.0, 0.002467741791356559, 0.01394273400094903),
    }
)
"""Lab of the colours of TIAM: means of the best examples (Berlin and Kay 1969); no orange, no brown."""


def srgb_to_lab(rgb: Tensor) -> Tensor:
    """(..., 3) L*, a*, b* (D65) of (..., 3) sRGB in [0, 1]; computed in float64, of the input's type."""
    c = rgb.double()
    linear = torch.where(c > 0.04045, ((c + 0.055) / 1.055) ** 2.4, c / 12.92)
    x, y = WHITE_XY
    white = linear.new_tensor([x / y, 1.0, (1 - x - y) / y])
    t = linear @ linear.new_tensor(RGB_TO_XYZ).T / white
    root = t.clamp(min=0) ** (1 / 3)
    f = torch.where(t > (6 / 29) ** 3, root, t / (3 * (6 / 29) ** 2) + 4 / 29)
    fx, fy, fz = f.unbind(-1)
    lab = torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -1)
    return lab.to(rgb.dtype)


def colour_shares(
    picture: Tensor, mask: Tensor, anchors: Mapping[str, tuple[float, float, float]] = BERLIN_KAY
) -> dict[str, float]:
    """Share of a mask's pixels whose nearest anchor (Euclidean in Lab) is each colour.

    Args:
        picture: (3, H, W) sRGB in [0, 1].
        mask: (H, W) bool.
        anchors: Lab of each colour by name.

    Returns:
        Shares that add up to 1, or are all 0 for an empty mask.

    Raises:
        ValueError: a mask of another size.
    """
    if mask.shape != picture.shape[1:]:
        raise ValueError(f"the mask is {tuple(mask.shape)}, the picture {tuple(picture.shape[1:])}")
    lab = srgb_to_lab(picture.permute(1, 2, 0)[mask.bool()].double())  # (n, 3)
    table = lab.new_tensor(list(anchors.values()))
    nearest = torch.cdist(lab, table).argmin(1)
    counts = torch.bincount(nearest, minlength=len(anchors)).double() / max(1, len(lab))
    return dict(zip(anchors, counts.tolist(), strict=True))
