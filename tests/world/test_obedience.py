"""Obedience of a pipeline, and the model card and notes that state it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderKL

from diffalign.world.grammar import parse, single_prompts
from diffalign.world.obedience import NOTES, examine, examine_vae, note, obedience, reconstruction
from diffalign.world.shapes import draw
from tests.tiny import tiny_folder


class Painter:
    """A stand-in for a pipeline, which draws every prompt right but those that it is told to spoil."""

    def __init__(self, spoilt: set[str]) -> None:
        self.spoilt, self.lengths = spoilt, []  # type: ignore[var-annotated]
        self.transformer = None

    def __call__(self, prompts: list[str], max_sequence_length: int, **others: Any) -> SimpleNamespace:
        self.lengths.append(max_sequence_length)
        pictures = draw([parse(p) for p in prompts], np.random.default_rng(0))
        for i, prompt in enumerate(prompts):
            pictures[i] *= 0 if prompt in self.spoilt else 1
        return SimpleNamespace(images=pictures)


def test_obedience_is_the_share_of_right_pictures() -> None:
    prompts = single_prompts("heldout")[:50]
    assert obedience(Painter(set()), prompts) == 1
    painter = Painter({str(p) for p in prompts[:10]})
    assert obedience(painter, prompts, length=256) == pytest.approx(0.8)
    assert painter.lengths == [256, 256]


@pytest.mark.parametrize(("name", "family"), [("unet", "sd"), ("dit", "sd3")])
@pytest.mark.slow
def test_examine_states_it_in_notes_and_card(name: str, family: str, tmp_path: Path) -> None:
    Path(tiny_folder(family, tmp_path)).rename(tmp_path / name)
    note(tmp_path, name, {"step": 7})
    found = examine(tmp_path, name, prompts=5)
    assert json.loads((tmp_path / NOTES).read_text())[name] == {"step": 7, "examined": found}
    assert (found["prompts"], found["prompts_two"]) == (5, 2)
    assert ("one_object_256" in found) == (name == "dit")
    card = (tmp_path / name / "README.md").read_text()
    assert f"| 5 of one object | {found['one_object']:.1%} |" in card
    assert "in 7 steps" in card
    assert "from diffusers import DiffusionPipeline\n" in card
    assert ("max_sequence_length=32" in card) == (name == "dit")


@pytest.mark.slow
def test_reconstructions_are_read_by_the_oracle(tmp_path: Path) -> None:
    shutil.copytree(Path("samples/shapes/unet/vae"), tmp_path / "unet" / "vae")
    found = examine_vae(tmp_path, pictures=40)
    assert found["pictures"] == 40
    assert found["right"] > 0.9
    assert 0 < found["error_255"] < 6
    assert json.loads((tmp_path / NOTES).read_text())["vae"] == {"examined": found}
    blind = AutoencoderKL.from_pretrained(tmp_path / "unet" / "vae").float()
    blind.decoder.conv_out.weight.data.zero_()
    assert reconstruction(blind, pictures=10)["right"] == 0
