"""Galleries of folders of results: what is joined, what is refused, and that nothing is written half."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffalign.evaluate.results import ResultsError, read_rows, write_rows
from diffalign.gallery.folders import join
from diffalign.gallery.payload import gallery_hash
from diffalign.gallery.pictures import embedded
from diffalign.gallery.write import page_of, write_gallery_of
from tests.gallery.conftest import write_results

PROMPTS = ("a red circle", "two blue stars", "a green ring")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", PROMPTS)


def data_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def edit(folder: Path, change: Any) -> None:
    write_rows(folder, [r.model_copy(update=u) for r in read_rows(folder) if (u := change(r)) is not None])


def test_rows_become_the_page(results: Path, tmp_path: Path) -> None:
    page = write_gallery_of([results], tmp_path / "g.html", title="look")
    data = data_of(page.read_text(encoding="utf-8"))
    assert (data["title"], data["models"], data["seeds"]) == (
        "look",
        ["base", "zebra-dpo", "zebra-kto"],
        [0, 1],
    )
    assert [row["prompt"] for row in data["rows"]] == list(PROMPTS)
    rows = {(r.prompt, r.model, r.seed): r for r in read_rows(results)}
    for row in data["rows"]:
        for m, model in enumerate(data["models"]):
            for s, seed in enumerate(data["seeds"]):
                found = rows[row["prompt"], model, seed]
                assert row["sha256"][m][s] == found.sha256
                assert row["scores"][0][m][s] == found.scores["taste"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.html", "results"]


def test_the_hash_is_as_documented(results: Path) -> None:
    lines = sorted(f"{r.model}\t{r.prompt_id}\t{r.seed}\t{r.sha256}\n" for r in read_rows(results))
    content = embedded(join([results]), None)
    assert content is not None
    assert gallery_hash(content) == hashlib.sha256("".join(lines).encode()).hexdigest()
    html, name = page_of([results])
    assert name == gallery_hash(content) == data_of(html)["gallery"]
    assert data_of(html)["server"] is True


def test_runs_that_share_the_base_are_joined(results: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "other", PROMPTS)
    edit(results, lambda r: {} if r.model != "zebra-kto" else None)
    edit(other, lambda r: {"model": "late"} if r.model == "zebra-kto" else {} if r.model == "base" else None)
    assert list(join([results, other]).models) == ["base", "zebra-dpo", "late"]
    assert list(join([results, other], base="late").models) == ["late", "base", "zebra-dpo"]


def test_a_score_that_some_pictures_lack_is_not_shown(
    results: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(results, lambda r: {"scores": {"taste": 1.0}} if r.model == "base" else {})
    assert list(join([results]).judges) == ["taste"]
    assert "not shown, as only some pictures have their score: scorer" in caplog.text


def test_large_galleries_keep_their_pictures_beside_the_file(results: Path, tmp_path: Path) -> None:
    page = write_gallery_of([results], tmp_path / "g.html", embed_limit=100)
    html = page.read_text(encoding="utf-8")
    data, files = data_of(html), sorted((tmp_path / "g_images").iterdir())
    assert len(files) == 3 * 3 * 2
    assert data["rows"][0]["images"][1][0] == f"g_images/{data['rows'][0]['sha256'][1][0]}.png"
    assert all(hashlib.sha256(f.read_bytes()).hexdigest() == f.stem for f in files)
    with pytest.raises(FileExistsError, match=r"g\.html exists"):
        write_gallery_of([results], page, embed_limit=100)
    edit(results, lambda r: {} if r.model != "zebra-kto" else None)
    write_gallery_of([results], page, embed_limit=100, overwrite=True)
    assert len(list((tmp_path / "g_images").iterdir())) == 3 * 2 * 2
    page.unlink()
    with pytest.raises(FileExistsError, match="g_images exists"):
        write_gallery_of([results], page, embed_limit=100)
    (tmp_path / "g_images" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"mine\.txt is no picture of a gallery"):
        write_gallery_of([results], page, embed_limit=100, overwrite=True)
    assert (tmp_path / "g_images" / "mine.txt").read_text() == "mine"


def test_a_picture_that_comes_twice_counts_twice(results: Path) -> None:
    rows = read_rows(results)
    edit(results, lambda r: {"path": rows[0].path, "sha256": rows[0].sha256})
    size = len(embedded(join([results]), None).entries[0].sources[0][0])  # type: ignore[union-attr]
    assert embedded(join([results]), len(rows) * size) is not None
    assert embedded(join([results]), len(rows) * size - 1) is None


def test_a_page_that_fails_leaves_the_old_folder(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_gallery_of([results], tmp_path / "g.html", embed_limit=100)
    before = sorted((tmp_path / "g_images").iterdir())

    def full(path: Path, text: str) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffalign.gallery.write.write_atomic", full)
    edit(results, lambda r: {} if r.model != "zebra-kto" else None)
    with pytest.raises(OSError, match="No space"):
        write_gallery_of([results], page, embed_limit=100, overwrite=True)
    assert sorted((tmp_path / "g_images").iterdir()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.html", "g_images", "results"]


def test_large_png_are_embedded_as_webp_and_keep_their_hash(tmp_path: Path) -> None:
    root = write_results(tmp_path / "r", PROMPTS[:1], models=("base",), seeds=(0,), side=300)
    content = embedded(join([root]), None)
    assert content is not None
    assert content.entries[0].sources[0][0].startswith("data:image/webp;base64,")
    assert content.entries[0].sha256[0][0] == read_rows(root)[0].sha256


def first(model: str, prompt: str, seed: int | None = None) -> Any:
    """Drop a model's pictures of a prompt."""
    return lambda r: None if r.model == model and r.prompt == prompt and seed in (None, r.seed) else {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first("zebra-dpo", PROMPTS[1]), "'zebra-dpo' lacks prompt 'two blue stars', which 'base' has"),
        (first("base", PROMPTS[1]), "'base' lacks prompt 'two blue stars', which 'zebra-dpo' has"),
        (first("zebra-dpo", PROMPTS[1], 1), "lacks seed 1 of prompt 'two blue stars'"),
        (lambda r: None if r.prompt == PROMPTS[0] and r.seed == 1 else {}, "has no picture of seed 1"),
        (lambda r: {"path": "gone.png"} if r.seed else {}, r"gone\.png is missing \(and 8 more\)"),
        (lambda r: {"sha256": "0" * 64} if r.seed else {}, r"changed since it was judged \(and 8 more\)"),
        (lambda r: None, "holds no rows"),
        (lambda r: {"prompt": r.model}, "names 'zebra-kto' and 'base'"),
    ],
)
def test_runs_that_cannot_be_shown_are_refused(
    results: Path, tmp_path: Path, change: Any, message: str
) -> None:
    edit(results, change)
    with pytest.raises(ResultsError, match=message):
        write_gallery_of([results], tmp_path / "g.html", embed_limit=0)
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


def test_one_name_for_two_pictures_is_refused(results: Path, tmp_path: Path) -> None:
    other = write_results(tmp_path / "other", PROMPTS)
    row = read_rows(other)[0]
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(other / row.path)
    digest = hashlib.sha256((other / row.path).read_bytes()).hexdigest()
    edit(other, lambda r: {"sha256": digest} if r.path == row.path else {})
    with pytest.raises(ResultsError, match=r"'base' has two pictures of prompt 'a red circle', seed 0"):
        join([results, other])


def test_a_score_that_is_no_number_is_refused(results: Path) -> None:
    edit(results, lambda r: {"scores": {"taste": float("nan")}})
    with pytest.raises(ResultsError, match=r"score of taste is nan|scores\.taste"):
        join([results])


def test_other_kinds_of_pictures_are_refused(results: Path) -> None:
    row = read_rows(results)[0]
    Image.new("RGB", (8, 8)).save(results / "x.gif")
    digest = hashlib.sha256((results / "x.gif").read_bytes()).hexdigest()
    edit(results, lambda r: {"path": "x.gif", "sha256": digest} if r.path == row.path else {})
    with pytest.raises(ValueError, match=r"x\.gif is GIF"):
        embedded(join([results]), None)
