"""Reading checkpoints and building models from them: layouts, wrappers, and everything that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from scorers.loading import build, need_weights, read_state

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class Touchy:
    """Runs code when it is unpickled in the usual way."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth", "a.ckpt", "a.bin"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_files_with_and_without_wrapper(tmp_path: Path, name: str, wrapped: bool) -> None:
    file = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(STATE, file)
    else:
        torch.save({"state_dict": STATE, "epoch": 3} if wrapped else STATE, file)
    for path in (file, tmp_path):  # the only file of a folder is found
        found = read_state(path)
        assert found.keys() == STATE.keys()
        assert torch.equal(found["weight"], STATE["weight"])


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_shards(tmp_path: Path, stem: str) -> None:
    shards = {k: f"{i}.{stem.rpartition('.')[2]}" for i, k in enumerate(STATE)}
    for key, shard in shards.items():
        (save_file if shard.endswith("safetensors") else torch.save)({key: STATE[key]}, tmp_path / shard)
    (tmp_path / f"{stem}.index.json").write_text(json.dumps({"weight_map": shards}))
    assert read_state(tmp_path).keys() == STATE.keys()
    (tmp_path / shards["bias"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"1\..* is missing; it belongs to the checkpoint"):
        read_state(tmp_path)
    (tmp_path / f"{stem}.index.json").write_text("{}")
    with pytest.raises(ValueError, match="no index of shards"):
        read_state(tmp_path)


def test_missing_and_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere"):
        read_state(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        read_state(tmp_path)
    torch.save(STATE, tmp_path / "a.pt")
    torch.save(STATE, tmp_path / "b.pt")
    with pytest.raises(ValueError, match=r"a\.pt, b\.pt; give the path of the one meant"):
        read_state(tmp_path)


def test_objects_are_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "config": Touchy()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"Python objects besides tensors.*convert it to safetensors"):
        read_state(tmp_path / "a.pt")


def test_damaged_and_strange_files(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.pt"):
        (tmp_path / name).write_bytes(b"cut short")
        with pytest.raises(ValueError, match=f"{name}.*damaged"):
            read_state(tmp_path / name)
    torch.save(STATE, tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"c\.pt.*damaged"):
        read_state(tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "d.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_state(tmp_path / "d.pt")
    torch.save({"weight": torch.ones(1), "epoch": 3}, tmp_path / "e.pt")
    with pytest.raises(ValueError, match=r"no tensors \(epoch\)"):
        read_state(tmp_path / "e.pt")


def test_build_gives_the_tensors_to_the_model() -> None:
    state = {**STATE, "old.position_ids": torch.arange(3)}
    model = build(lambda: nn.Linear(3, 2), state, where=Path("here"), ignore=["*position_ids"])
    assert torch.equal(model.weight, STATE["weight"])
    assert model.weight.device.type == "cpu"


def test_build_reports_every_misfit() -> None:
    with pytest.raises(ValueError, match=r"^here does not hold the weights of this Linear: 1 keys missing"):
        build(lambda: nn.Linear(3, 2), {"weight": STATE["weight"]}, where=Path("here"))
    with pytest.raises(ValueError, match=r"1 keys unexpected \(surplus\)"):
        build(lambda: nn.Linear(3, 2), {**STATE, "surplus": torch.ones(1)}, where=Path("here"))
    with pytest.raises(ValueError, match=r"weight is \(2, 3\) and should be \(2, 4\)"):
        build(lambda: nn.Linear(4, 2), STATE, where=Path("here"))
    with pytest.raises(ValueError, match="checkpoint of another model"):
        build(lambda: nn.Linear(3, 2), {"mlp.weight": torch.ones(1)}, where=Path("here"))


def test_needed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert need_weights("x", Path("there"), "a file") == Path("there")
    monkeypatch.setenv("SCORERS_WEIGHTS", "rewards")
    with pytest.raises(
        FileNotFoundError, match=r"'x' needs weights: pass weights=PATH \(a file\).*no rewards/x"
    ):
        need_weights("x", None, "a file")
