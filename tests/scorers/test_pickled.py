"""Tensors out of a pickled module whose classes are gone, without running anything of the file."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import scorers
from scorers.mps import Mps, MpsModel
from scorers.pickled import convert_pickled_module, read_pickled_module
from tests.scorers.test_loading import Touchy
from tests.scorers.test_mps import PROMPTS, tiny_mps


def pickle_as_lost(module: nn.Module, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save a module under a class that will not exist when it is read."""
    lost = types.ModuleType("trainer_of_long_ago")
    kind = type("Lost", (nn.Module,), {"__module__": lost.__name__})
    lost.Lost = kind  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, lost.__name__, lost)
    holder = kind()
    for name, child in module.named_children():
        holder.add_module(name, child)
    torch.save(holder, file)
    monkeypatch.delitem(sys.modules, lost.__name__)


def test_a_published_mps_is_converted_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, x = tiny_mps(), torch.rand(3, 3, 32, 32)
    scorer.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    pickle_as_lost(scorer.towers, tmp_path / "MPS_overall_checkpoint.pth", monkeypatch)
    with pytest.raises(ValueError, match="Python objects besides tensors"):
        scorers.load("mps", tmp_path)
    done = convert_pickled_module(tmp_path / "MPS_overall_checkpoint.pth", tmp_path / "model.safetensors")
    assert done.is_file()
    again = scorers.load("mps", tmp_path)
    assert isinstance(again, Mps)
    assert torch.equal(again.score_tensor(x, PROMPTS), scorer.score_tensor(x, PROMPTS))


def test_keys_are_those_of_the_state_dict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    towers: MpsModel = tiny_mps().towers
    pickle_as_lost(towers, tmp_path / "a.pth", monkeypatch)
    found = read_pickled_module(tmp_path / "a.pth")
    assert found.keys() == towers.state_dict().keys()
    assert all(torch.equal(found[k], v) for k, v in towers.state_dict().items())


def test_nothing_of_the_file_is_run(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    module.extra = Touchy()
    torch.save(module, tmp_path / "a.pth")
    with pytest.raises(SystemExit, match="code ran"):
        torch.load(tmp_path / "a.pth", weights_only=False)
    assert read_pickled_module(tmp_path / "a.pth").keys() == {"weight", "bias"}


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no module with weights"):
        read_pickled_module(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"b\.pth is damaged"):
        read_pickled_module(tmp_path / "b.pth")
    torch.save(nn.Linear(2, 1), tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"format from before 1\.6"):
        read_pickled_module(tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"must be a \.safetensors file"):
        convert_pickled_module(tmp_path / "a.pth", tmp_path / "a.bin")
    (tmp_path / "b.safetensors").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="not overwritten"):
        convert_pickled_module(tmp_path / "a.pth", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == b"mine"
