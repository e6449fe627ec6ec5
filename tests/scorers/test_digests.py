"""Digests follow content, not names, and nothing that matters is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from scorers.digests import image_digest, items_digest, weights_digest
from scorers.votes import Ranking, Rating, Vote


def test_a_picture_is_its_content(tmp_path: Path) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "red"), ("c.png", "blue")):
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    a, b, c = (image_digest(tmp_path / name) for name in ("a.png", "b.png", "c.png"))
    assert a == b == image_digest((tmp_path / "a.png").read_bytes()) == image_digest(str(tmp_path / "a.png"))
    assert a != c
    with open(tmp_path / "a.png", "rb") as file:
        assert image_digest(file) == image_digest(file) == a
    x = torch.rand(3, 2, 4)
    kinds = [x, x.reshape(3, 4, 2), x.half(), x.numpy()[..., ::-1], Image.new("L", (2, 2))]
    assert len({image_digest(k) for k in kinds}) == len(kinds)
    assert image_digest(x.numpy()[..., ::-1]) == image_digest(np.ascontiguousarray(x.numpy()[..., ::-1]))


def test_votes_differ_by_all_that_they_say() -> None:
    a, b = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    vote = Vote(a, b, "p", 1.0, "ann", "size")
    others = [
        vote._replace(first=b), vote._replace(second=a), vote._replace(prompt="q"), vote._replace(label=0.5),
        vote._replace(user="bob"), vote._replace(dim=""), Ranking([a, b], "p", (1.0, 0.0)),
        Ranking([a, b], "p", (0.0, 1.0)), Rating(a, "p", (3.0,)),
    ]  # fmt: skip
    assert len({items_digest([item]) for item in [vote, *others]}) == 10
    assert items_digest([vote, others[0]]) != items_digest([others[0], vote])
    assert items_digest([(a, b, "p", 1)]) == items_digest([Vote(a, b, "p", 1.0)])  # type: ignore[list-item]


def test_weights_differ_by_one_bit_and_by_precision() -> None:
    layer = nn.Linear(3, 2)
    before = weights_digest(layer)
    assert before == weights_digest(layer)
    assert weights_digest(layer.bfloat16()) != before
    layer = nn.Linear(3, 2)
    digest = weights_digest(layer)
    layer.bias.data[1] += 1e-6
    assert weights_digest(layer) != digest
    assert weights_digest(nn.Identity()) == weights_digest(object()) == ""
