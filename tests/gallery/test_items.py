"""Galleries of pictures in memory: their data, escaping and errors."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffalign.evaluate.report import Report, Verdict, build_report
from diffalign.evaluate.results import prompt_id
from diffalign.evaluate.stats import base_sd, compare
from diffalign.gallery.items import GalleryItem, content_of, encode
from diffalign.gallery.payload import payload
from diffalign.gallery.render import render
from diffalign.gallery.write import render_gallery, write_gallery
from diffalign.world.grammar import single_prompts
from diffalign.world.shapes import draw
from tests.gallery.conftest import ATTACK

PROMPTS = ["a red circle", ATTACK, "a blue star", "a green ring on a white background"]
GAINS = [1.0, -2.0, 0.1, 2.0]  # in units of the base's s.d., by prompt


def scores() -> tuple[np.ndarray, np.ndarray]:
    base = np.tile([-1.0, 1.0, 0.0], (4, 1))  # s.d. 1 between seeds
    return base, base + np.array(GAINS)[:, None]


@pytest.fixture(scope="module")
def items() -> list[GalleryItem]:
    rng = np.random.default_rng(0)
    pictures = (draw(single_prompts("train")[:24], rng) * 255).byte().permute(0, 2, 3, 1).numpy()
    pictures = pictures.reshape(4, 2, 3, 64, 64, 3)
    base, model = scores()
    return [
        GalleryItem(
            prompt=PROMPTS[i],
            category="round" if i % 3 == 0 else "pointed",
            images={"base": list(pictures[i, 0]), "aligned": [Image.fromarray(p) for p in pictures[i, 1]]},
            scores={
                "taste": {"base": base[i].tolist(), "aligned": model[i].tolist()},
                "scorer": {"base": base[i].tolist(), "aligned": (-model[i]).tolist()},
            },
        )
        for i in range(4)
    ]


@pytest.fixture(scope="module")
def report() -> Report:
    base, model = scores()
    taste, scorer = (compare(base, m, sd=base_sd(base)) for m in (model, -model))
    return build_report(
        base="base",
        verdicts=[
            Verdict(model="aligned", metric="taste", held_out=True, comparison=taste),
            Verdict(model="aligned", metric="scorer", held_out=False, comparison=scorer),
        ],
        obedience={"base": 1.0, "model": 0.75},
    )


def embedded(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found.group(1))
    return data


def test_the_file_forbids_the_network_and_names_no_address(items: list[GalleryItem], report: Report) -> None:
    html = render_gallery(items, report, "title")
    policy = "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}; form-action' in html
    assert html.index("Content-Security-Policy") < min(
        html.index(tag) for tag in ("<style", "<script", "<link")
    )
    assert not re.search(r"https?:|//[a-z]+\.[a-z]", re.sub(r"base64,[\w+/=]+", "", html))


def test_a_served_page_may_ask_its_server_and_nobody_else(items: list[GalleryItem]) -> None:
    html = render(payload(content_of(items), None, "t"), server=True)
    assert "script-src 'unsafe-inline'; connect-src 'self'; form-action 'none'" in html
    assert embedded(html)["server"] is True


def test_prompts_and_titles_cannot_become_markup(items: list[GalleryItem], report: Report) -> None:
    html = render_gallery(items, report, ATTACK)
    assert html.count("</script>") == 2  # the data block's end and the program's
    assert "<img src=x" not in html
    assert "<!--" not in html
    data = embedded(html)
    assert (data["rows"][1]["prompt"], data["title"]) == (ATTACK, ATTACK)
    assert "&lt;/script&gt;&lt;img" in html.partition("</title>")[0]


def test_small_pictures_are_kept_bit_for_bit(items: list[GalleryItem]) -> None:
    kind, content = encode(items[0].images["base"][0])
    assert kind == "png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), items[0].images["base"][0])
    entry = content_of(items).entries[0]
    assert entry.sha256[0][0] == hashlib.sha256(content).hexdigest()
    assert base64.b64decode(entry.sources[0][0].partition("base64,")[2]) == content


def test_large_pictures_become_webp() -> None:
    kind, content = encode(np.full((300, 200, 3), 90, np.uint8))
    assert (kind, Image.open(io.BytesIO(content)).size) == ("webp", (200, 300))
    assert encode(Image.new("RGBA", (256, 256)))[0] == "png"
    tall = GalleryItem(prompt="p", images={"base": [np.zeros((300, 200, 3), np.uint8)]})
    assert (content_of([tall]).entries[0].width, content_of([tall]).entries[0].height) == (200, 300)


def test_a_prompt_that_comes_twice_has_two_ids(items: list[GalleryItem]) -> None:
    ids = [entry.prompt_id for entry in content_of([items[0], items[0]]).entries]
    assert ids == [prompt_id("a red circle"), prompt_id("a red circle") + "-2"]


def data_of(items: list[GalleryItem], report: Report | None) -> dict[str, Any]:
    return payload(content_of(items), report, "t")


def test_data_is_as_the_report_counts_it(items: list[GalleryItem], report: Report) -> None:
    data = data_of(items, report)
    assert data["models"] == ["base", "aligned"]  # not sorted: the base comes first
    assert data["judges"] == [
        {"name": "taste", "sd": 1.0, "trained": False},
        {"name": "scorer", "sd": 1.0, "trained": True},
    ]
    assert (data["margin"], data["seeds"]) == (0.25, [0, 1, 2])
    assert data["table"] == report["comparisons"]
    assert embedded(render(data, server=False)) == {**json.loads(json.dumps(data)), "server": False}


def test_without_a_report_the_figures_are_computed(items: list[GalleryItem], report: Report) -> None:
    rows = data_of(items, None)["table"]
    assert rows[0] == report["comparisons"][0]
    assert [(row["model"], row["metric"]) for row in rows] == [("aligned", "taste"), ("aligned", "scorer")]
    assert data_of(items[:1], None)["table"] == []  # one prompt has no interval


def test_a_part_of_the_prompts_is_counted_in_the_unit_of_the_whole_report(report: Report) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    calm = GalleryItem(
        prompt="p",
        images={"base": [picture] * 3, "aligned": [picture] * 3},
        scores={"taste": {"base": [0.0, 0.1, 0.2], "aligned": [0.2, 0.3, 0.4]}},
    )
    assert data_of([calm], report)["judges"][0]["sd"] == pytest.approx(1.0)
    assert data_of([calm], None)["judges"][0]["sd"] == pytest.approx(0.1)


def test_one_seed_leaves_gains_raw(items: list[GalleryItem]) -> None:
    one = [
        GalleryItem(prompt=i.prompt, images={m: p[:1] for m, p in i.images.items()}, scores={"taste": cut(i)})
        for i in items
    ]
    assert data_of(one, None)["judges"] == [{"name": "taste", "sd": None, "trained": False}]
    assert data_of(one, None)["table"][0]["mean_gain_sd"] == pytest.approx(np.mean(GAINS))


def cut(item: GalleryItem) -> dict[str, list[float]]:
    return {model: list(scores[:1]) for model, scores in item.scores["taste"].items()}


def test_never_overwrites_unasked(items: list[GalleryItem], tmp_path: Path) -> None:
    path = tmp_path / "gallery.html"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_gallery(path, items, None, "t")
    assert path.read_text() == "mine"
    assert write_gallery(path, items, None, "t", overwrite=True) == path
    assert path.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_clear_errors(items: list[GalleryItem], report: Report) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)

    def item(models: dict[str, int], values: dict[str, list[float]]) -> GalleryItem:
        return GalleryItem(
            prompt="p", images={m: [picture] * n for m, n in models.items()}, scores={"j": values}
        )

    good = item({"a": 2, "b": 2}, {"a": [0, 1], "b": [0, 1]})
    for broken, message in [
        ([], "at least one item"),
        ([item({}, {})], "no pictures"),
        ([item({"a": 2, "b": 1}, {"a": [0, 1], "b": [0, 1]})], "b has 1 pictures, expected 2"),
        ([good, item({"a": 2}, {"a": [0, 1]})], r"item 1 .* has models \['a'\]"),
        ([item({"a": 2, "b": 2}, {"a": [0, 1]})], r"scores for \['a'\], expected \['a', 'b'\]"),
        ([item({"a": 2, "b": 2}, {"a": [0, 1], "b": [0]})], r"b has scores \[0\], expected 2 finite"),
        ([item({"a": 2, "b": 2}, {"a": [0, float("nan")], "b": [0, 1]})], "expected 2 finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            render_gallery(broken, None, "t")
    swapped = [GalleryItem(prompt="p", images={"x": [picture], "base": [picture]})]
    with pytest.raises(ValueError, match="put it first"):
        render_gallery(swapped, report, "t")
    with pytest.raises(TypeError, match="float64"):
        encode(np.zeros((8, 8, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\)"):
        encode(np.zeros((3, 8, 8), np.uint8))
