from __future__ import annotations

from pathlib import Path

import pytest

from diffalign import assets


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty current folder, packaged assets and checkout."""
    for name in ("here", "packaged", "checkout"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(assets, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setattr(assets, "CHECKOUT", tmp_path / "checkout")
    return tmp_path


def make(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("steps: 1")
    return path


def test_order_of_places(places):
    last = make(places / "checkout/samples/shapes/x")
    assert assets.asset("samples/shapes/x") == last
    middle = make(places / "packaged/samples/shapes/x")
    assert assets.asset("samples/shapes/x") == middle
    first = make(places / "here/samples/shapes/x")
    assert assets.asset("samples/shapes/x") == first


def test_recipes_are_called_recipes_in_the_wheel(places):
    file = make(places / "packaged/recipes/shapes-unet-dpo.yaml")
    assert assets.asset("training/recipes/shapes-unet-dpo.yaml") == file
    assert assets.recipe("shapes-unet-dpo") == assets.recipe("shapes-unet-dpo.yaml") == file
    assert assets.recipes() == ["shapes-unet-dpo"]


def test_a_file_beside_the_user_wins_over_a_packaged_recipe(places):
    make(places / "packaged/recipes/mine.yaml")
    own = make(places / "here/mine.yaml")
    assert assets.recipe("mine.yaml") == own


def test_absolute_paths_are_taken_as_they_are(places):
    file = make(places / "elsewhere/y")
    assert assets.asset(file) == file


def test_errors_name_what_was_tried(places):
    make(places / "checkout/training/recipes/one.yaml")
    with pytest.raises(FileNotFoundError, match=r"cannot find 'samples/none'.*here.*packaged.*checkout"):
        assets.asset("samples/none")
    with pytest.raises(FileNotFoundError, match=r"no recipe at 'two'; packaged ones are one"):
        assets.recipe("two")
