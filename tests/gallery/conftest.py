"""Folders of results with tiny pictures, and a real browser."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from diffalign.evaluate.results import Row, prompt_id, write_rows

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ATTACK = "</script><img src=x onerror=\"document.title='owned'\"> & {{ 7 * 7 }} <!--<script>"
MODELS = ("base", "zebra-dpo", "zebra-kto")
"""Their names are in no prompt, so that a test can look for them."""
INSTALL = "no browser for the gallery's tests; install one with: apt-get install chromium"


def write_results(
    root: Path,
    prompts: Sequence[str],
    models: Sequence[str] = MODELS,
    seeds: Sequence[int] = (0, 1),
    side: int = 8,
) -> Path:
    """Pictures of random pixels; model m gains m on average by "taste", which "scorer" contradicts."""
    rng = np.random.default_rng(0)
    rows = []
    for p, prompt in enumerate(prompts):
        for m, model in enumerate(models):
            for seed in seeds:
                file = root / model / prompt_id(prompt) / f"{seed}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                # With the model in it, as the generator gives every run of this function the same pixels.
                pixels = (rng.integers(0, 200, (side, side, 3)) + 20 * m).astype(np.uint8)
                Image.fromarray(pixels).save(file)
                taste = float(rng.normal() + m * (p % 4 - 0.5))
                rows.append(
                    Row(
                        prompt_id=prompt_id(prompt),
                        prompt=prompt,
                        category=("colour", "count")[p % 2],
                        challenge=("simple", "hard", "odd")[p % 3],
                        seed=seed,
                        model=model,
                        path=file.relative_to(root).as_posix(),
                        width=side,
                        height=side,
                        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
                        scores={"taste": taste, "scorer": -taste},
                    )
                )
    write_rows(root, rows)
    return root


class Visit:
    """A page with all that it said and asked for."""

    def __init__(self, page: Page, address: str) -> None:
        """Listen before the page is opened."""
        self.page, self.address = page, address
        self.requests: list[str] = []
        self.messages: list[str] = []
        self.asked = 0  # how often the page wanted to be sure before it was left
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("dialog", self._asked)

    def _asked(self, dialog: object) -> None:
        if dialog.type == "beforeunload":  # type: ignore[attr-defined]
            self.asked += 1
        else:
            self.messages.append(dialog.message)  # type: ignore[attr-defined]
        dialog.accept()  # type: ignore[attr-defined]

    def open(self, fragment: str = "") -> Page:
        """Open the page afresh with a view in its address."""
        self.page.goto("about:blank")
        self.page.goto(self.address + fragment)
        return self.page

    def prompts(self) -> list[str]:
        """What the page lists, in order."""
        return self.page.locator("#rows h3").all_text_contents()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium of the system."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is missing: make test installs it"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(INSTALL)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=arguments)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    """The page at ``address``; it must say nothing and ask for nothing."""
    context = browser.new_context(
        viewport={"width": 1200, "height": 900}, color_scheme="light", accept_downloads=True
    )
    context.set_default_timeout(10_000)
    found = Visit(context.new_page(), address)
    yield found
    assert found.messages == []
    assert [url for url in found.requests if not url.startswith(("file:", "data:", "about:", "blob:"))] == []
    context.close()
