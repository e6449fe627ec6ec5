"""Contrast pairs share their start noise and lie under the plain prompt; DCPO's caption variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.data import BytesImage, DataError, Record
from diffalign.data.transform import decode
from diffalign.evaluate.generate import Sampling, picture_seed
from diffalign.label.captions import dual_captions, perturb_words
from diffalign.label.contrast import (
    Contrast,
    Distorted,
    Perturbed,
    Suffix,
    WrongCaption,
    contrast_pairs,
    contrasts,
)
from diffalign.world.captions import describe, describe_images, perturb
from diffalign.world.grammar import double_prompts, parse, single_prompts
from diffalign.world.shapes import draw
from tests.data.data_helpers import pair

PROMPTS = ["a red circle", "a blue star"]


class Painter:
    """Makes noise by seed, with a brightness by prompt; keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], *, steps: int, guidance: float, side: int | None
    ) -> Tensor:
        assert len(prompts) <= 3
        self.asked += zip(prompts, seeds, strict=True)
        noise = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(s)) / 2 for s in seeds]
        return torch.stack([x + brightness(p) for x, p in zip(noise, prompts, strict=True)])


def brightness(prompt: str) -> float:
    """Of a painter's picture, above its noise: another for each prompt, below a half."""
    return (sum(prompt.encode()) % 997) / 2000


def made(contrast: Contrast, **options: Any) -> tuple[list[Record], Painter]:
    painter = Painter()
    records = contrast_pairs(painter, PROMPTS, contrast, sampling=Sampling(batch=3), **options)
    return records, painter


def level(record: Record, image: int) -> float:
    return float(np.asarray(decode(record.images[image].read(), "x")).mean())


def test_both_sides_have_one_seed_and_the_plain_prompt() -> None:
    records, painter = made(Suffix(negative=" on a red background"), seeds=(1000, 1001))
    assert [r.prompt for r in records] == [p for p in PROMPTS for _ in range(2)]
    assert all(r.values == (1, 0) and r.kind == "pair" for r in records)
    expected = {
        (p + s, picture_seed(p, n))
        for p in PROMPTS
        for n in (1000, 1001)
        for s in ("", " on a red background")
    }
    assert set(painter.asked) == expected
    assert len(painter.asked) == 8
    gap = level(records[0], 1) - level(records[0], 0)
    added = brightness(PROMPTS[0] + " on a red background") - brightness(PROMPTS[0])
    assert gap == pytest.approx(255 * added, abs=0.6)  # the noise cancels


@pytest.mark.parametrize("kind", ["blur", "noise", "coarse", "fade"])
def test_distorted_pictures_are_made_once_and_damaged(kind: Any) -> None:
    records, painter = made(Distorted(kind=kind))
    assert len(painter.asked) == 2
    mild, _ = made(Distorted(kind=kind, strength=0.1))

    def damage(record: Record) -> float:
        a, b = (np.asarray(decode(i.read(), "x"), dtype=float) for i in record.images)
        return float(np.abs(a - b).mean())

    assert damage(records[0]) > damage(mild[0]) > 0 or kind == "blur"
    assert records[0].images[0].read() == mild[0].images[0].read()


def test_wrong_and_perturbed_captions_are_the_losers() -> None:
    _, painter = made(WrongCaption())
    assert {p for p, _ in painter.asked} == set(PROMPTS)
    assert len(painter.asked) == 4
    records, painter = made(Perturbed(perturb=perturb))
    losers = [p for p, _ in painter.asked if p not in PROMPTS]
    assert len(losers) == 2
    assert all(str(parse(p)) == p for p in losers)
    again, _ = made(Perturbed(perturb=perturb))
    assert [r.images[1].read() for r in again] == [r.images[1].read() for r in records]


def test_contrasts_that_change_nothing_are_refused() -> None:
    assert contrasts.names() == ["distorted", "perturbed", "suffix", "wrong_caption"]
    with pytest.raises(DataError, match="must differ"):
        Suffix()
    with pytest.raises(DataError, match="strength is 0"):
        Distorted(strength=0)
    with pytest.raises(DataError, match="both pictures are the same"):
        made(Perturbed(perturb=lambda p, rng: p))
    with pytest.raises(DataError, match="two different prompts"):
        contrast_pairs(Painter(), PROMPTS[:1], WrongCaption())
    with pytest.raises(DataError, match="a prompt and a seed"):
        contrast_pairs(Painter(), [], WrongCaption())


def test_the_world_is_described_and_perturbed() -> None:
    prompts = [p for p in (*single_prompts("train")[:12], *double_prompts("train")[:4])]
    pictures = draw(prompts, np.random.default_rng(0))
    found = [parse(c) for c in describe(pictures, [str(p) for p in prompts])]
    same = [f.shapes == p.shapes and f.colours == p.colours for f, p in zip(found, prompts, strict=True)]
    assert np.mean(same[:12]) > 0.9
    told = [(f, p) for f, p in zip(found, prompts, strict=True) if p.background is not None]
    assert np.mean([f.background == p.background for f, p in told]) > 0.9
    assert describe(torch.full((1, 3, 64, 64), 0.5), ["a red circle"]) == ["a red circle"]
    rng = np.random.default_rng(0)
    changed = [perturb(str(p), rng) for p in prompts for _ in range(3)]
    assert all(parse(c) not in prompts[i // 3 : i // 3 + 1] for i, c in enumerate(changed))


@pytest.mark.parametrize(
    ("variant", "captions"),
    [("c", ("seen 0", "seen 1")), ("p", ("prompt 7", "no prompt 7")), ("h", ("seen 0", "no seen 1"))],
)
def test_dual_captions(variant: Any, captions: tuple[str, str]) -> None:
    tools: dict[str, Any] = {
        "describe": lambda images, prompts: [f"seen {i % 2}" for i in range(len(images))],
        "perturb": lambda text, rng: f"no {text}",
    }
    first, second, tie = dual_captions([pair(7), pair(7, 0.0), pair(7, 0.5)], variant, batch=2, **tools)
    assert first.prompts == captions
    if variant == "p":
        assert second.prompts == captions[::-1]
    assert tie.prompts is None
    assert first.prompt == "prompt 7"


def test_dual_captions_say_what_they_lack() -> None:
    for variant, lack in (("c", "describe"), ("h", "describe"), ("p", "perturb")):
        with pytest.raises(DataError, match=f"give {lack}"):
            dual_captions([pair(0)], variant)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="for pairs"):
        dual_captions([pair(0).only((0,), "labels", (1.0,))], "p", perturb=perturb)


def test_a_world_picture_and_words() -> None:
    prompt = single_prompts("train")[0]
    pixels = (draw([prompt], np.random.default_rng(0))[0] * 255).byte().permute(1, 2, 0).numpy()
    image = BytesImage.from_array(pixels)
    assert parse(describe_images([image], [str(prompt)])[0]).shapes == prompt.shapes
    text = "one two three four five"
    changed = {perturb_words(text, np.random.default_rng(i)) for i in range(20)}
    assert text not in changed
    assert all(set(c.split()) <= set(text.split()) for c in changed)
    with pytest.raises(DataError, match="fewer than two words"):
        perturb_words("one", np.random.default_rng(0))
    assert replace(pair(0), prompts=("a", "b")).prompt_of(1) == "b"
