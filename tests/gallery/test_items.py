"""The gallery: its data, its escaping, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from diffalign.evaluate.gallery import GalleryItem, gallery_data, picture_uri, render_gallery, write_gallery
from diffalign.evaluate.report import Report, Verdict, build_report
from diffalign.evaluate.stats import base_sd, compare
from diffalign.world.grammar import single_prompts
from diffalign.world.shapes import draw

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = "</script><img src=x onerror=\"document.title='owned'\"> & {{ 7 * 7 }} <!--<script>"
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


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_file_forbids_the_network_and_names_no_address(items: list[GalleryItem], report: Report) -> None:
    html = render_gallery(items, report, "title")
    policy = "default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    policy += "; form-action 'none'; base-uri 'none'"
    assert f'http-equiv="Content-Security-Policy" content="{policy}"' in html
    assert html.index("Content-Security-Policy") < min(
        html.index(tag) for tag in ("<style", "<script", "<link")
    )
    assert not re.search(r"https?:|//[a-z]+\.[a-z]", re.sub(r"base64,[\w+/=]+", "", html))
    assert "innerHTML" not in html


def test_prompts_and_titles_cannot_become_markup(items: list[GalleryItem], report: Report) -> None:
    html = render_gallery(items, report, ATTACK)
    assert html.count("</script>") == 2  # the data block's end and the program's
    assert "<img src=x" not in html
    assert "<!--" not in html
    data = embedded(html)
    assert data["rows"][1]["prompt"] == ATTACK
    assert "&lt;/script&gt;&lt;img" in html.partition("</title>")[0]


def test_small_pictures_are_kept_bit_for_bit(items: list[GalleryItem]) -> None:
    uri, width, height = picture_uri(items[0].images["base"][0])
    assert uri.startswith("data:image/png;base64,")
    assert (width, height) == (64, 64)
    np.testing.assert_array_equal(np.asarray(decode(uri)), items[0].images["base"][0])


def test_large_pictures_become_webp() -> None:
    uri, width, height = picture_uri(np.full((300, 200, 3), 90, np.uint8))
    assert uri.startswith("data:image/webp;base64,")
    assert (width, height, decode(uri).size) == (200, 300, (200, 300))
    assert picture_uri(Image.new("RGBA", (256, 256)))[0].startswith("data:image/png")


def test_data_is_as_the_report_counts_it(items: list[GalleryItem], report: Report) -> None:
    data = gallery_data(items, report)
    assert data["models"] == ["base", "aligned"]  # not sorted: the base comes first
    assert data["judges"] == [
        {"name": "taste", "sd": 1.0, "trained": False},
        {"name": "scorer", "sd": 1.0, "trained": True},
    ]
    assert (data["margin"], data["seeds"]) == (0.25, 3)
    assert json.dumps(embedded(render_gallery(items, report, "t"))) == json.dumps(
        data
    )  # the order of keys too


def test_a_part_of_the_prompts_is_counted_in_the_unit_of_the_whole_report(report: Report) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    calm = GalleryItem(
        prompt="p",
        images={"base": [picture] * 3, "aligned": [picture] * 3},
        scores={"taste": {"base": [0.0, 0.1, 0.2], "aligned": [0.2, 0.3, 0.4]}},
    )
    assert gallery_data([calm], report)["judges"][0]["sd"] == pytest.approx(1.0)
    assert gallery_data([calm], None)["judges"][0]["sd"] == pytest.approx(0.1)


def test_one_seed_leaves_gains_raw(items: list[GalleryItem]) -> None:
    one = [
        GalleryItem(prompt=i.prompt, images={m: p[:1] for m, p in i.images.items()}, scores={"taste": cut(i)})
        for i in items
    ]
    assert gallery_data(one, None)["judges"] == [{"name": "taste", "sd": None, "trained": False}]


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
        picture_uri(np.zeros((8, 8, 3)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\)"):
        picture_uri(np.zeros((3, 8, 8), np.uint8))


# ---- in a browser -----------------------------------------------------------------------------


class Visit:
    """A page with all that it said and asked for."""

    def __init__(self, page: Page, address: str) -> None:
        """Listen before the page is opened."""
        self.page, self.address = page, address
        self.requests: list[str] = []
        self.messages: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", lambda dialog: self.messages.append(dialog.message))

    def open(self, fragment: str = "") -> Page:
        self.page.goto("about:blank")
        self.page.goto(self.address + fragment)
        return self.page

    def prompts(self) -> list[str]:
        return self.page.locator("#rows h3").all_text_contents()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is installed")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(items: list[GalleryItem], report: Report, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_gallery(tmp_path_factory.mktemp("gallery") / "gallery.html", items, report, ATTACK).as_uri()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, color_scheme="light")
    found = Visit(context.new_page(), address)
    yield found
    assert found.messages == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:", "about:"))] == []
    context.close()


def test_browser_shows_an_attack_as_text(visit: Visit) -> None:
    page = visit.open()
    assert page.title() == page.locator("h1").inner_text() == ATTACK
    assert ATTACK in visit.prompts()
    assert page.locator("img[src='x'], #rows script").count() == 0
    assert page.locator("img").count() == 4 * 2 * 3
    # Each is decoded on purpose: those far down the page load late, and a broken one would reject.
    widths = page.evaluate(
        """() => Promise.all([...document.images].map((image) => {
            image.loading = "eager";
            return image.decode().then(() => image.naturalWidth);
        }))"""
    )
    assert set(widths) == {64}


def test_browser_refuses_requests(visit: Visit) -> None:
    page = visit.open()
    violated = page.evaluate(
        """() => new Promise((done) => {
            addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
            fetch("http://127.0.0.1:9/").catch(() => {});
        })"""
    )
    assert violated == "connect-src"
    assert any("Content Security Policy" in message for message in visit.messages)
    visit.messages.clear()


def test_browser_sorts(visit: Visit) -> None:
    page = visit.open()
    worst = [PROMPTS[i] for i in (1, 2, 0, 3)]
    assert visit.prompts() == worst
    page.select_option("#sort", "best")
    assert visit.prompts() == worst[::-1]
    page.select_option("#judge", "scorer")  # its scores of the model are mirrored
    assert visit.prompts()[0] == ATTACK
    page.select_option("#sort", "file")
    assert visit.prompts() == PROMPTS


def test_browser_filters(visit: Visit) -> None:
    page = visit.open("#sort=file")
    page.fill("#text", "STAR blue")
    assert visit.prompts() == ["a blue star"]
    assert page.locator("#count").inner_text() == "1 of 4 prompts"
    page.fill("#text", "elephant")
    assert page.locator("#empty").is_visible()
    page.click("#clear")
    page.click("#worse")
    assert page.locator("#worse").get_attribute("aria-pressed") == "true"
    assert visit.prompts() == [ATTACK]
    page.click("#worse")
    page.select_option("#category", "round")
    assert visit.prompts() == [PROMPTS[0], PROMPTS[3]]


def test_browser_keeps_the_view_in_the_address(visit: Visit) -> None:
    page = visit.open()
    page.select_option("#sort", "best")
    page.fill("#text", "a & b #1=2")
    page.click("#theme")
    fragment = page.evaluate("location.hash")
    again = visit.open(fragment)
    assert again.input_value("#text") == "a & b #1=2"
    assert again.input_value("#sort") == "best"
    assert again.evaluate("document.documentElement.dataset.theme") == "dark"
    for nonsense in ("#open=99.7", "#open=-1", "#sort=xyz&judge=none&open=a.b", "#%%%"):
        visit.open(nonsense)
        assert len(visit.prompts()) == 4
        assert not page.locator("dialog").is_visible()


def test_browser_enlarges_two_side_by_side_by_keyboard(visit: Visit) -> None:
    page = visit.open("#sort=file")
    page.locator("#rows article").first.locator("figure").nth(1).locator("button").first.focus()
    page.keyboard.press("Enter")
    where = page.locator("#view-place")
    assert page.locator("dialog").is_visible()
    assert page.locator("#view-two figcaption").all_text_contents() == ["base", "aligned"]
    assert "seed 1 of 3" in where.inner_text()
    assert "+1.00 s.d." in page.locator("#view-scores").inner_text()
    page.keyboard.press("ArrowRight")
    assert "seed 2 of 3" in where.inner_text()
    page.keyboard.press("ArrowDown")
    assert page.locator("#view-prompt").inner_text() == ATTACK
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # before the first comes the last
    assert page.locator("#view-prompt").inner_text() == PROMPTS[3]
    assert "open=3.2" in page.evaluate("location.hash")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    for _ in range(100):  # the close event comes a task later; the page's policy forbids waiting inside of it
        if "open" not in page.evaluate("location.hash"):
            break
        page.wait_for_timeout(20)
    assert "open" not in page.evaluate("location.hash")
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"Enlarge aligned, seed 2: {PROMPTS[3]}"  # goes on at the picture seen last


def test_browser_shows_the_report(visit: Visit, report: Report) -> None:
    page = visit.open()
    text = page.locator("#summary").inner_text()
    row = report["comparisons"][0]
    # The page's own rounding, which differs from Python's at exact halves.
    rate, low, high = page.evaluate(
        "(x) => x.map((v) => v.toFixed(3))", [row["win_rate"], row["ci_low"], row["ci_high"]]
    )
    for part in [
        f"{rate} [{low}, {high}]",
        f"{row['wins']} / {row['ties']} / {row['losses']}",
        "trained on",
        "75.0 %",
    ]:
        assert part in text


def test_browser_fits_a_phone(visit: Visit) -> None:
    page = visit.open()
    for width in (320, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
