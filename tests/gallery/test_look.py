"""Looking at a gallery of 3 models x 50 prompts in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffalign.evaluate.results import prompt_id, read_rows
from diffalign.gallery.write import write_gallery_of
from tests.gallery.conftest import ATTACK, MODELS, Visit, write_results

PROMPTS = [f"a circle, number {n}" for n in range(49)] + [ATTACK]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("look") / "results", PROMPTS)


@pytest.fixture(scope="module")
def address(folder: Path) -> str:
    return write_gallery_of([folder], folder.parent / "gallery.html", title=ATTACK).as_uri()


@pytest.fixture(scope="module")
def gain(folder: Path) -> dict[str, dict[str, float]]:
    """Mean gain of each model by taste, in raw units, by prompt."""
    score = {(r.model, r.prompt, r.seed): r.scores["taste"] for r in read_rows(folder)}
    return {
        model: {
            p: float(np.mean([score[model, p, s] - score["base", p, s] for s in (0, 1)])) for p in PROMPTS
        }
        for model in MODELS
    }


@pytest.mark.slow
def test_an_attack_is_shown_as_text(visit: Visit) -> None:
    page = visit.open("#sort=file&text=onerror")
    assert page.title() == page.locator("h1").inner_text() == ATTACK
    assert visit.prompts() == [ATTACK]
    assert page.locator("img[src='x'], #rows script").count() == 0
    page.locator(".picture").first.click()
    assert page.locator("#view-prompt").inner_text() == ATTACK
    visit.open("#view=summary")
    assert page.locator("#figures a", has_text="onerror").count() + page.locator("#figures img").count() < 3
    assert page.title() == ATTACK


@pytest.mark.slow
def test_requests_are_refused(visit: Visit) -> None:
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


@pytest.mark.slow
def test_sorts(visit: Visit, gain: dict[str, dict[str, float]], folder: Path) -> None:
    page = visit.open()
    worst = sorted(PROMPTS, key=gain["zebra-dpo"].__getitem__)
    assert visit.prompts() == worst  # the default
    page.select_option("#sort", "best")
    assert visit.prompts() == worst[::-1]
    page.select_option("#judge", "scorer")  # contradicts taste
    assert visit.prompts() == worst
    page.select_option("#model", "zebra-kto")
    assert visit.prompts() == sorted(PROMPTS, key=gain["zebra-kto"].__getitem__)
    page.select_option("#sort", "high")
    score = {
        p: [r.scores["scorer"] for r in read_rows(folder) if (r.model, r.prompt) == ("zebra-kto", p)]
        for p in PROMPTS
    }
    assert visit.prompts() == sorted(PROMPTS, key=lambda p: -float(np.mean(score[p])))
    page.select_option("#sort", "file")
    assert visit.prompts() == PROMPTS


@pytest.mark.slow
def test_filters(visit: Visit, gain: dict[str, dict[str, float]]) -> None:
    page = visit.open("#sort=file")
    page.fill("#text", "NUMBER 12")
    assert visit.prompts() == ["a circle, number 12"]
    assert page.locator("#count").inner_text() == "1 of 50 prompts"
    page.fill("#text", "elephant")
    assert page.locator("#empty").is_visible()
    page.click("#clear")
    page.select_option("#category", "count")
    page.select_option("#challenge", "odd")
    assert visit.prompts() == [p for i, p in enumerate(PROMPTS) if i % 2 == 1 and i % 3 == 2]
    page.select_option("#category", "")
    page.select_option("#challenge", "")
    sd = page.evaluate("judges[0].sd")
    page.click("[data-chip=lost]")
    assert visit.prompts() == [p for p in PROMPTS if gain["zebra-dpo"][p] / sd < -0.25]
    page.click("[data-chip=lost]")
    page.click("[data-chip=disagree]")  # the second judge mirrors the first
    assert visit.prompts() == [p for p in PROMPTS if abs(gain["zebra-dpo"][p] / sd) > 0.25]
    page.click("[data-chip=disagree]")
    page.locator("article", has_text="number 3").first.locator(".flag").click()
    page.click("[data-chip=flagged]")
    assert visit.prompts() == ["a circle, number 3"]
    visit.open("#only=flagged")  # flags are kept
    assert visit.prompts() == ["a circle, number 3"]


@pytest.mark.slow
def test_columns_move_hide_and_stay_pinned(visit: Visit) -> None:
    page = visit.open()
    heads = page.locator("article").first.locator("figcaption")
    heads.first.wait_for()
    assert heads.all_text_contents() == list(MODELS)
    page.click("#columns summary")
    page.click("[aria-label='Move zebra-kto left']")
    assert heads.all_text_contents() == ["base", "zebra-kto", "zebra-dpo"]
    page.uncheck("#column-list [data-model='1'] input")
    assert heads.all_text_contents() == ["base", "zebra-kto"]
    assert page.locator("article").first.locator(".pinned").count() == 1
    page.locator("#column-list > label input").uncheck()
    page.click("[aria-label='Move base right']")
    assert heads.all_text_contents() == ["zebra-kto", "base"]
    visit.open(page.evaluate("location.hash"))
    heads.first.wait_for()  # rows are filled when they are seen
    assert heads.all_text_contents() == ["zebra-kto", "base"]


@pytest.mark.slow
def test_scores_are_ranked_within_the_prompt(visit: Visit, folder: Path) -> None:
    page = visit.open("#sort=file")
    scores = [r.scores["taste"] for r in read_rows(folder) if r.prompt == PROMPTS[0]]
    page.locator("article").first.locator(".rank").first.wait_for()
    labels = (
        page.locator("article").first.locator(".rank").evaluate_all("(all) => all.map((e) => e.ariaLabel)")
    )
    for score, text in zip(scores, labels, strict=True):
        rank = sorted(scores, reverse=True).index(score) + 1
        assert f"rank {rank} of 6 within this prompt" in text


@pytest.mark.slow
def test_the_whole_view_is_in_the_address(visit: Visit) -> None:
    page = visit.open()
    page.select_option("#sort", "best")
    page.fill("#text", "a & b #1=2")
    page.click("#theme")
    again = visit.open(page.evaluate("location.hash"))
    assert again.input_value("#text") == "a & b #1=2"
    assert again.input_value("#sort") == "best"
    assert again.evaluate("document.documentElement.dataset.theme") == "dark"
    name = prompt_id(PROMPTS[7])
    page = visit.open(f"#prompt={name}&seed=1&a=zebra-kto&b=base&mode=slider&zoom=2,10,-20")
    assert page.locator("#view-prompt").inner_text() == PROMPTS[7]
    assert page.locator("#stage figcaption").all_text_contents() == ["zebra-kto", "base"]
    assert page.locator("#stage").get_attribute("class") == "stage slider pixels zoomed"
    assert page.evaluate("[lens.z, lens.x, lens.y]") == [2, 10, -20]
    for nonsense in (
        "#prompt=x",
        f"#prompt={name}&seed=99&a=b&cols=7.x",
        "#sort=xyz&judge=none",
        "#%%%",
        "#zoom=a",
    ):
        visit.open(nonsense)
        assert len(visit.prompts()) == 50


@pytest.mark.slow
def test_two_are_compared_by_keyboard(visit: Visit) -> None:
    page = visit.open("#sort=file")
    page.locator("article").first.locator("figure").nth(2).locator("button").first.focus()
    page.keyboard.press("Enter")
    where, stage = page.locator("#view-place"), page.locator("#stage")
    assert page.locator("#stage figcaption").all_text_contents() == ["base", "zebra-kto"]
    assert "seed 0" in where.inner_text()
    page.keyboard.press("ArrowRight")
    assert "seed 1" in where.inner_text()
    page.keyboard.press("ArrowDown")
    assert page.locator("#view-prompt").inner_text() == PROMPTS[1]
    page.keyboard.press("x")
    assert page.locator("#stage figcaption").all_text_contents() == ["zebra-kto", "base"]
    page.keyboard.press("x")
    for key, mode in (("2", "slider"), ("4", "difference"), ("3", "flicker")):
        page.keyboard.press(key)
        assert mode in (stage.get_attribute("class") or "")
    first, second = page.locator("#stage .first"), page.locator("#stage .second")
    assert (first.is_visible(), second.is_visible()) == (True, False)
    page.keyboard.press("Space")
    assert (first.is_visible(), second.is_visible()) == (False, True)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")  # before the first comes the last
    assert page.locator("#view-prompt").inner_text() == ATTACK
    page.keyboard.press("Escape")
    for _ in range(100):  # the close event comes a task later; the page's policy forbids waiting inside of it
        if "prompt" not in page.evaluate("location.hash"):
            break
        page.wait_for_timeout(20)
    assert not page.locator("#dialog").is_visible()
    focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"Compare zebra-kto, seed 1: {ATTACK}"  # goes on at the picture seen last


@pytest.mark.slow
def test_zoom_and_pan_are_linked(visit: Visit) -> None:
    page = visit.open(f"#prompt={prompt_id(PROMPTS[0])}")
    left, right = (page.locator("#stage img").nth(i) for i in (0, 1))
    transform = "(e) => getComputedStyle(e).transform"
    box = page.locator(".frame").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert page.evaluate("lens") == {"z": 3, "x": pytest.approx(50, abs=1), "y": pytest.approx(0, abs=1)}
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 50 + box["width"] / 10, box["y"] + 50, steps=3)
    page.mouse.up()
    assert page.evaluate("lens.x") == pytest.approx(60, abs=1)
    assert left.evaluate(transform) == right.evaluate(transform) != "none"
    page.mouse.wheel(0, 200)
    assert page.evaluate("lens.z") < 3
    assert "zoom=" in page.evaluate("location.hash")
    page.keyboard.press("0")
    assert page.evaluate("lens") == {"z": 1, "x": 0, "y": 0}
    page.evaluate(
        """async () => {
            const large = Object.assign(document.createElement("canvas"), { width: 3000, height: 1500 });
            const image = document.querySelector("#stage img");
            image.src = large.toDataURL();
            await image.decode();
        }"""
    )
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)  # to its full resolution
    assert page.evaluate("lens.z") == pytest.approx(max(3000 / box["width"], 1500 / box["height"]))


@pytest.mark.slow
def test_the_difference_of_two_pictures_is_drawn(visit: Visit) -> None:
    page = visit.open(f"#prompt={prompt_id(PROMPTS[0])}&mode=difference&a=base&b=base")
    box = page.locator(".frame").first.bounding_box()
    assert box is not None
    middle = {
        "x": box["x"] + box["width"] / 2 - 40,
        "y": box["y"] + box["height"] / 2 - 40,
        "width": 80,
        "height": 80,
    }
    assert np.asarray(shot(page, middle)).max() == 0  # a picture does not differ from itself
    page.select_option("#b", "zebra-kto")
    assert np.asarray(shot(page, middle)).max() > 60


def shot(page: Any, clip: dict[str, float]) -> np.ndarray:
    import io

    from PIL import Image

    page.locator("#stage img").nth(1).evaluate("(e) => e.decode()")
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))


@pytest.mark.slow
def test_the_summary(visit: Visit, gain: dict[str, dict[str, float]]) -> None:
    page = visit.open("#view=summary")
    table = page.evaluate("data.table")
    text = page.locator("#summary").inner_text()
    for row in table:
        assert f"{row['wins']} / {row['ties']} / {row['losses']}" in text
    first = table[0]
    cells = page.locator("section[aria-label='Win rates'] td").all_text_contents()
    assert cells[3].startswith(page.evaluate("(x) => x.toFixed(3)", first["win_rate"]))
    assert page.locator("section[aria-label*='Bradley'] tbody tr").count() == 3
    assert page.locator("section[aria-label=Categories] tbody tr").count() == 2
    assert page.locator(".histogram i").count() == 21
    losses = page.locator("section[aria-label='Largest losses'] a")
    assert losses.all_text_contents() == sorted(PROMPTS, key=gain["zebra-dpo"].__getitem__)[:8]
    worst = losses.first.inner_text()
    losses.first.click()
    assert page.locator("#view-prompt").inner_text() == worst
    visit.open("#view=summary&source=votes")
    assert "No votes yet" in page.locator("#figures").inner_text()


@pytest.mark.slow
def test_strengths_are_where_the_likelihood_is_flat(visit: Visit) -> None:
    """Davidson's model with the ridge: the gradient, written out anew, is 0 at what the page finds."""
    wins = np.array([[0, 3, 1], [7, 0, 4], [12, 5, 0]], dtype=float)
    ties = np.array([[0, 2, 1], [2, 0, 6], [1, 6, 0]], dtype=float)
    page = visit.open()
    found = page.evaluate(
        "([wins, ties]) => strengths({ wins, ties })", [wins.ravel().tolist(), ties.ravel().tolist()]
    )
    assert found[0] == 0
    theta = np.array([*(np.array(found[:3]) - np.mean(found[:3])), found[3]])  # the ridge makes their sum 0
    slope = -0.1 * theta
    for i in range(3):
        for j in range(i):
            features = np.zeros((3, 4))  # of: i wins, j wins, tie
            features[0, i] = features[1, j] = features[2, 3] = 1
            features[2, [i, j]] = 0.5
            chance = np.exp(features @ theta)
            seen = np.array([wins[i, j], wins[j, i], ties[i, j]])
            slope += (seen - seen.sum() * chance / chance.sum()) @ features
    np.testing.assert_allclose(slope, 0, atol=1e-3)


@pytest.mark.slow
def test_intervals_of_the_page_agree_with_the_report(visit: Visit) -> None:
    page = visit.open()
    (found,) = page.evaluate("bootstrap(tally('taste'), (sums) => [rate(sums, 1, 0)])")
    row = page.evaluate("data.table[0]")
    assert found["value"] == pytest.approx(row["win_rate"])
    assert found["low"] == pytest.approx(row["ci_low"], abs=0.02)
    assert found["high"] == pytest.approx(row["ci_high"], abs=0.02)


@pytest.mark.slow
def test_it_fits_a_phone(visit: Visit) -> None:
    for fragment in ("", "#view=summary", "#view=vote", f"#prompt={prompt_id(PROMPTS[0])}"):
        page = visit.open(fragment)
        for width in (320, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, fragment


@pytest.mark.slow
def test_everything_has_a_name_for_a_screen_reader(visit: Visit) -> None:
    page = visit.open(f"#prompt={prompt_id(PROMPTS[0])}")
    nameless = """() => [...document.querySelectorAll("button, select, input, img")].filter((e) =>
        !(e.textContent.trim() && e.tagName === "BUTTON") && !e.ariaLabel && !e.labels?.length &&
        !e.hasAttribute("alt")).map((e) => e.outerHTML)"""
    assert page.evaluate(nameless) == []
    visit.open("#view=vote")
    assert page.evaluate(nameless) == []


@pytest.mark.slow
def test_pictures_beside_the_file_are_loaded_when_they_come_near(
    visit: Visit, folder: Path, tmp_path: Path
) -> None:
    visit.address = write_gallery_of([folder], tmp_path / "g.html", embed_limit=0).as_uri()
    page = visit.open("#sort=file")
    page.locator(".picture img").first.evaluate("(e) => e.decode()")
    asked = [url for url in visit.requests if "g_images" in url]
    assert 6 <= len(asked) < 300
    assert not any(model in url for url in visit.requests for model in MODELS)
    (Path(tmp_path) / "g_images" / Path(asked[0]).name).unlink()
    visit.open("#sort=file")
    page.locator(".lost").first.wait_for()
    assert {"ERR_FILE_NOT_FOUND" in message for message in visit.messages} == {True}
    visit.messages.clear()
    assert page.locator(".lost").first.inner_text() == "picture missing"
