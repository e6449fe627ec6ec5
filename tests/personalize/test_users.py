"""The store of people: hashed names, what is given out, and that deleted people are gone from the bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffalign.personalize import users as module
from diffalign.personalize.users import INDEX, VECTORS, Users, UsersError

NAMES = ("anna", "ben", "carla")


def vector(seed: int) -> torch.Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))


def store(folder: Path) -> Users:
    found = Users(folder, "tokens")
    found.add_all({name: vector(i) for i, name in enumerate(NAMES)}, votes={"ben": 4})
    return found


def everything(folder: Path) -> bytes:
    return b"".join(f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file())


def test_people_come_back_under_hashes(tmp_path: Path) -> None:
    store(tmp_path)
    again = Users(tmp_path)
    assert torch.equal(again.vector("ben"), vector(1))
    assert torch.equal(again.matrix(), torch.stack([vector(i) for i in range(3)]))
    assert again.rows(["carla", "dora", again.id_of("anna")]).tolist() == [2, -1, 0]
    assert [p.votes for p in again.people()] == [0, 4, 0]
    assert not any(name.encode() in everything(tmp_path) for name in NAMES)


def test_each_store_has_a_salt_of_its_own(tmp_path: Path) -> None:
    one, two = Users(tmp_path / "one", "tokens"), Users(tmp_path / "two", "tokens")
    assert one.id_of("anna") != two.id_of("anna")
    assert one.id_of("anna") == Users(tmp_path / "one").id_of("anna")
    assert len(one.id_of("anna")) == 32
    one.add("anna", vector(0))
    assert one.id_of(one.id_of("anna")) == one.id_of("anna")


def test_a_name_that_looks_like_an_id_is_hashed_like_any_other(tmp_path: Path) -> None:
    """Data sets name their people by digests, which would point to them in other data."""
    digest = "d41d8cd98f00b204e9800998ecf8427e"
    found = store(tmp_path)
    assert found.add(digest, vector(7)).id != digest
    assert digest.encode() not in everything(tmp_path)
    assert torch.equal(found.vector(digest), vector(7))
    assert found.rows([digest, found.id_of(digest)]).tolist() == [3, 3]
    found.delete(digest)
    with pytest.raises(UsersError, match=f"{digest!r}: nobody is stored as"):
        found.vector(digest)


def test_a_deleted_person_is_in_no_byte_of_the_folder(tmp_path: Path) -> None:
    found = store(tmp_path)
    one = found.id_of("ben")
    raw = [
        vector(1).to(t).contiguous().view(torch.uint8).numpy().tobytes() for t in (torch.float32, torch.half)
    ]
    deeper = tmp_path / "deeper"
    deeper.mkdir()
    save_file({f"{one}.copy": vector(1).half(), "rest": torch.ones(3)}, deeper / "copy.safetensors")
    (deeper / "log.jsonl").write_text(f'{{"id": "{one}"}}\n{{"id": "other"}}\n')
    (deeper / "notes.json").write_text(json.dumps({"seen": [one, "x"], one: 3, "kept": {"by": 1}}))
    assert one.encode() in everything(tmp_path)
    assert raw[0] in everything(tmp_path)
    deletion = found.delete("ben")
    left = everything(tmp_path)
    assert one.encode() not in left
    assert not any(r in left for r in raw)
    assert {f.name for f in deletion.rewritten} == {
        INDEX,
        VECTORS,
        "copy.safetensors",
        "log.jsonl",
        "notes.json",
    }
    assert list(load_file(deeper / "copy.safetensors")) == ["rest"]
    assert json.loads((deeper / "notes.json").read_text()) == {"seen": ["x"], "kept": {"by": 1}}
    assert (deeper / "log.jsonl").read_text() == '{"id": "other"}\n'
    assert torch.equal(Users(tmp_path).matrix(), torch.stack([vector(0), vector(2)]))
    with pytest.raises(UsersError, match="knows 2 people"):
        found.delete("ben")


def test_what_was_given_out_goes_too(tmp_path: Path) -> None:
    """The vector stands as text in what ``export`` writes: taking the id alone out would hide it for ever."""
    found = store(tmp_path / "users")
    anna, ben = (found.export(name) for name in ("anna", "ben"))
    (tmp_path / "ben.json").write_text(json.dumps(ben))
    (tmp_path / "all.json").write_text(json.dumps({"people": [anna, ben], "of": {"x": ben}}))
    found.delete("ben", [tmp_path])
    assert json.loads((tmp_path / "ben.json").read_text()) == {}
    assert json.loads((tmp_path / "all.json").read_text()) == {"people": [anna], "of": {}}
    assert str(ben["vector"][0][0]).encode() not in everything(tmp_path)


def test_copies_that_cannot_be_rewritten_are_named(tmp_path: Path) -> None:
    found = store(tmp_path / "users")
    run = tmp_path / "run"
    run.mkdir()
    save_file({"people": torch.stack([vector(0), vector(1)])}, run / "state.safetensors")
    with pytest.raises(
        UsersError, match=r"run.state\.safetensors still hold the person .*: delete these files"
    ):
        found.delete("ben", [run])
    assert found.rows(["ben"]).tolist() == [-1]
    (run / "state.safetensors").unlink()
    found.add("ben", vector(1))
    assert found.delete("ben", [run]).id == found.id_of("ben")


def test_damaged_files_are_named_and_twins_are_not_taken_for_one_another(tmp_path: Path) -> None:
    found = store(tmp_path)
    found.add("twin", vector(1))
    found.delete("ben")  # the same numbers stay, as those of the twin
    (tmp_path / "damaged.json").write_text("{" + found.id_of("carla"))
    with pytest.raises(UsersError, match=r"damaged\.json still hold the person"):
        found.delete("carla")
    (tmp_path / "damaged.json").unlink()
    assert [p.id for p in found.people()] == [found.id_of("anna"), found.id_of("twin")]


def test_a_failing_write_leaves_everything_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = store(tmp_path)
    before = everything(tmp_path)

    def fails(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("diffalign.atomic.os.replace", fails)
    with pytest.raises(OSError, match="disk full"):
        found.add("dora", vector(5))
    monkeypatch.undo()
    assert everything(tmp_path) == before
    found.add("dora", vector(5))


def test_a_deletion_that_stopped_half_way_can_be_repeated(tmp_path: Path) -> None:
    found = store(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["people"][found.id_of("ben")]
    (tmp_path / INDEX).write_text(json.dumps(index))
    found.delete("ben")
    assert found.id_of("ben") not in load_file(tmp_path / VECTORS)


def test_all_that_is_stored_is_given_out(tmp_path: Path) -> None:
    found = store(tmp_path).export("ben")
    assert torch.equal(torch.tensor(found["vector"]), vector(1))
    assert (found["kind"], found["shape"], found["votes"]) == ("tokens", [4, 6], 4)
    assert json.loads(json.dumps(found)) == found


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsersError, match=r"holds no users\.json: nobody is stored there"):
        Users(tmp_path)
    found = store(tmp_path)
    with pytest.raises(UsersError, match="is stored already"):
        found.add("anna", vector(0))
    with pytest.raises(UsersError, match=r"the vector is \(4, 7\) and people here have \(4, 6\)"):
        found.add("dora", torch.zeros(4, 7))
    with pytest.raises(UsersError, match="not finite"):
        found.add("dora", torch.full((4, 6), float("nan")))
    with pytest.raises(UsersError, match=r"nobody is stored as .* which knows 3 people"):
        found.vector("dora")
    with pytest.raises(UsersError, match="stores people as tokens, not as weights"):
        Users(tmp_path, "weights")
    (tmp_path / VECTORS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is damaged"):
        found.matrix()
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UsersError, match="is no index of people in format 1"):
        Users(tmp_path)
    monkeypatch.setattr(module, "WAIT", 0.0)
    other = store(tmp_path / "other")
    (other.folder / module.LOCK).touch()
    with pytest.raises(UsersError, match="another process changes"):
        other.add("dora", vector(0))
