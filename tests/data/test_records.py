"""Record refuses what does not fit together, and image sources give the bytes back."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffalign.data import BytesImage, DataError, FileImage, Record

IMAGES = (BytesImage(b"a"), BytesImage(b"b"))


def make(**changes: object) -> Record:
    fields: dict[str, Any] = {
        "prompt": "x",
        "images": IMAGES,
        "kind": "pair",
        "values": (1.0, 0.0),
        "source": "here row 3",
    }
    return Record(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "caption is missing"),
        ({"images": IMAGES[:1], "values": (1.0,)}, "needs 2 images, got 1"),
        ({"images": (*IMAGES, IMAGES[0]), "values": (1.0, 0.0, 0.0)}, "needs 2 images, got 3"),
        ({"images": (), "values": (), "kind": "labels"}, "needs 1 images or more"),
        ({"kind": "like"}, "kind is 'like'"),
        ({"values": (1.0,)}, "2 images but 1 values"),
        ({"prompts": ("a",)}, "2 images but 1 prompts"),
        ({"values": (1.5, -0.5)}, r"in \[0, 1\]"),
        ({"values": (0.7, 0.7)}, "add up to 1"),
        ({"values": (float("nan"), 0.0)}, "finite"),
        ({"kind": "labels", "values": (1.0, 0.7)}, "0.5 .unknown"),
        ({"kind": "ranking", "values": (1.0, float("inf"))}, "finite"),
    ],
)
def test_a_record_that_does_not_fit_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        make(**changes)
    assert "here row 3" in str(error.value)


def test_soft_pairs_empty_prompts_and_any_scores_are_fine() -> None:
    assert not make(values=(0.3, 0.7)).undecided
    assert make(prompt="", values=(0.5, 0.5)).undecided
    assert make(kind="ranking", values=(-7.0, -7.0)).undecided
    assert not make(kind="labels", values=(0.5, 1.0)).undecided
    assert make(prompts=("a", "b")).prompt_of(1) == "b"


def test_image_sources_give_their_bytes(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = BytesImage.from_array(pixels, "seven wide")
    (tmp_path / "x.png").write_bytes(image.read())
    file = FileImage(tmp_path / "x.png")
    assert file.read() == image.read()
    assert str(tmp_path) in file.where
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image.read()))), pixels)


def test_only_uint8_colour_arrays_become_images() -> None:
    with pytest.raises(DataError, match="float64"):
        BytesImage.from_array(np.zeros((4, 4, 3)))  # type: ignore[arg-type]
