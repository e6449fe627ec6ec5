"""Utilities of Diffusion-KTO (arXiv:2404.04465, section 4, and its published code)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Utility = Literal["sigmoid", "loss_averse", "risk_seeking_1", "risk_seeking_2", "risk_seeking_3"]
LARGEST = 20.0
"""Exponent at which risk_seeking_2 is cut off (z = 2,000, far beyond any run that is well)."""


def utility(name: Utility, z: Tensor, y: int) -> Tensor:
    """(N,) U of images liked (y = 1) or disliked (y = -1), by z = u - k.

    Of the risk-seeking ones the loss 1 - U has no floor: on likes in 1 and 2, on both kinds in 3.
    risk_seeking_1 takes likes as 3 does, and dislikes as loss_averse does.
    """
    match name:
        case "sigmoid":
            return torch.sigmoid(y * z)
        case "loss_averse":
            return F.logsigmoid(y * z)
        case "risk_seeking_1":
            return y * F.softplus(z)
        case "risk_seeking_2":
            return y * torch.exp((z / 100).clamp_max(LARGEST)) - 1
        case "risk_seeking_3":
            return F.softplus(y * z)
