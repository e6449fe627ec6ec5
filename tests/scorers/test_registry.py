"""Names, near names, addresses, entry points."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import scorers
from scorers.registry import Registry, RegistryError


@pytest.fixture
def things() -> Registry[type]:
    registry: Registry[type] = Registry("thing")
    registry.register("dict")(dict)
    registry.register("list")(list)
    return registry


def test_get_and_names(things: Registry[type]) -> None:
    assert things.get("dict") is dict
    assert things.names() == ["dict", "list"]


def test_unknown_name_suggests_and_lists(things: Registry[type]) -> None:
    with pytest.raises(RegistryError, match=r"no thing is called 'dit'; did you mean 'dict'.*dict, list"):
        things.get("dit")


def test_duplicate_raises_but_a_reload_of_the_same_does_not(things: Registry[type]) -> None:
    things.register("dict")(dict)
    with pytest.raises(RegistryError, match="'dict' is taken by builtins:dict"):
        things.register("dict")(set)


def test_address(things: Registry[type]) -> None:
    assert things.get("pathlib:Path") is Path
    for wrong in ("pathlib:Pth", "no_such_module:x", "pathlib.nothing:x", ":x"):
        with pytest.raises(RegistryError):
            things.get(wrong)


def test_missing_dependency_of_an_addressed_module_shows_itself(
    things: Registry[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        things.get("needs_more:x")


def test_package_is_scanned_once_and_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_things"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from scorers.registry import Registry\nthings = Registry('thing', package='some_things')\n"
    )
    (package / "one.py").write_text(
        "from some_things import things\n@things.register('one')\nclass One: ...\n"
    )
    (package / "_private.py").write_text("raise RuntimeError('private modules are not scanned')\n")
    monkeypatch.syspath_prepend(tmp_path)
    import some_things  # type: ignore[import-not-found]

    assert "some_things.one" not in sys.modules
    assert some_things.things.get("one").__name__ == "One"
    assert some_things.things.names() == ["one"]


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint(name="theirs", value="pathlib:PurePath", group="things")

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if group == "things" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry: Registry[type] = Registry("thing", entry_points="things")
    assert registry.names() == ["theirs"]
    assert registry.get("theirs").__name__ == "PurePath"


@pytest.mark.slow
def test_scorers_imports_nothing_heavy() -> None:
    code = (
        "import sys, scorers\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'diffalign'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'pickscore' in scorers.names()\n"
        "heavy = {'transformers', 'open_clip', 'diffalign'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    root = Path(scorers.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_of_scorers_names_diffalign_as_import() -> None:
    for file in Path(scorers.__file__).parent.rglob("*.py"):
        assert "import diffalign" not in file.read_text()
        assert "from diffalign" not in file.read_text()
