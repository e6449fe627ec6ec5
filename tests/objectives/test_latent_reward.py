"""LPO's latent reward model on the published numbers: the loss of its pairs, with gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from scorers.losses_structure import lrm_loss
from tests.objectives.online import CLOSE, check_gradient, golden


def test_pair_loss() -> None:
    d = golden("latent_reward")
    names = ("text", "image_0", "image_1", "logit_scale_log")
    text, image_0, image_1, log_scale = leaves = [d[name].clone().requires_grad_(True) for name in names]
    loss = lrm_loss(
        *(F.normalize(x, dim=-1) for x in (text, image_0, image_1)),
        d["timesteps"].reshape(-1, 2),
        scale=log_scale.exp(),
        label_0=d["label_0"],
        num_examples=d["num_examples_per_prompt"],
    )
    torch.testing.assert_close(loss, d["pair_loss"], **CLOSE)
    for name, leaf in zip(names, leaves, strict=True):
        check_gradient(loss, leaf, d[f"grad_{name}"])
