"""``diffalign score``: plain scoring, and options that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffalign.label import command, judges
from diffalign.label.command import score_pictures
from diffalign.label.judges import load_judge, own_device
from diffalign.label.request import ScoreRequest
from scorers.registry import RegistryError
from tests.label.helpers import Channel

RED = "tests.label.helpers:Channel"


def paint(root: Path, *levels: int) -> list[str]:
    for i, level in enumerate(levels):
        Image.new("RGB", (4, 4), (level, 0, 0)).save(root / f"{i}.png")
    return [str(root / f"{i}.png") for i in range(len(levels))]


def test_each_picture_has_its_line_and_its_reason(tmp_path: Path) -> None:
    files = paint(tmp_path, 255, 0, 51)
    Path(files[1]).write_bytes(b"rubbish")
    lines = score_pictures(files, [RED], "a red circle")
    assert lines[0] == f"1.0000\t{files[0]}"
    assert lines[1].startswith("failed: image 1")
    assert lines[2] == f"0.2000\t{files[2]}"


def test_the_batch_is_honoured_and_so_is_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(self: Channel, x01: torch.Tensor, prompts: Any) -> torch.Tensor:
        sizes.append(len(x01))
        return x01[:, 0].mean((1, 2))

    monkeypatch.setattr(Channel, "score_tensor", counting)
    score_pictures(paint(tmp_path, *range(5)), [RED], "a", batch=2)
    assert sizes == [2, 2, 1]
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(command, "load_judges", lambda specs, device, allow_hub: asked.append(device) or [])
    score_pictures([], [], "a")
    assert asked == ["cuda:0"]
    assert own_device(3) == "cuda:1"


def test_unknown_names_and_missing_files_are_said() -> None:
    with pytest.raises(RegistryError, match="did you mean 'pickscore'"):
        score_pictures(["nowhere.png"], ["pikscore"], "a")
    with pytest.raises(FileNotFoundError, match=r"no picture nowhere\.png; folders are scored with --output"):
        score_pictures(["nowhere.png"], ["jpeg"], "a")


def test_what_does_not_go_together_is_refused() -> None:
    def refused(message: str, **given: Any) -> None:
        with pytest.raises(ValueError, match=message):
            ScoreRequest(images=["a"], scorers=given.pop("scorers", ["jpeg"]), **given)

    refused("--axioms and --compare are different", axioms=True, compare=True)
    refused("add --write", pairs="best_worst")
    refused("leave --output out", compare=True, output=Path("x.jsonl"))
    refused("give --output", processes=2)
    refused("give --output", processes=2, write=True, output=Path("x"))
    refused("--weights belong to one", scorers=["a", "b"], weights="w")
    for mode in ("axioms", "write"):
        refused("--workers read ahead", workers=2, **{mode: True})
    refused("--workers read ahead", workers=2)
    ScoreRequest(images=["a"], scorers=["jpeg"], workers=2, output=Path("x.jsonl"))
    ScoreRequest(images=["a"], scorers=["jpeg"], workers=2, compare=True)


def test_the_batch_is_an_option_of_a_pass_over_data() -> None:
    request = ScoreRequest(images=["data", "cases=3"], scorers=["jpeg"], axioms=True, batch=7)
    assert request.data == ["data", "cases=3", "batch=7"]
    twice = ScoreRequest(images=["data", "batch=3"], scorers=["jpeg"], axioms=True, batch=7)
    with pytest.raises(ValueError, match="--batch and batch= are the same"):
        twice.lines()
    given = ScoreRequest(images=["a"], scorers=["jpeg?quality=9"], weights="w")
    assert given.specs == ["jpeg=w?quality=9"]


def test_options_are_part_of_what_scores_are_kept_by() -> None:
    plain, nine, ten = (load_judge(s) for s in ("jpeg", "jpeg?quality=9", "jpeg?quality=10"))
    assert len({plain.id, nine.id, ten.id}) == 3
    assert nine.id == load_judge("jpeg?quality=9").id
    assert nine.name == "jpeg"


def test_weights_are_fetched_once_for_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffalign.label import at_scale

    done: list[Any] = []
    monkeypatch.setattr(
        judges.scorers, "find_weights", lambda name, allow_hub: done.append((name, allow_hub))
    )
    monkeypatch.setattr(at_scale, "spawn", lambda n, arguments: done.append(arguments))
    out = tmp_path / "o.jsonl"
    at_scale.score_to_file(["a"], ["jpeg", "nima=w"], None, out, processes=2, allow_hub=True)
    assert done[0] == ("jpeg", True)
    assert "--allow-hub" in done[1]
    assert len(done) == 2
