"""Take docs/gallery.png, the README's picture, of a gallery in headless Chromium.

python training/gallery_picture.py samples/gallery.html
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import sync_playwright

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(
    gallery: Annotated[Path, typer.Argument(help="gallery.html of a run")],
    out: Annotated[Path, typer.Option(help="PNG file")] = Path("docs/gallery.png"),
    view: Annotated[str, typer.Option(help="the part of the page's address after #")] = "sort=best",
) -> None:
    """Take the top of the page."""
    browser = next((b for name in BROWSERS if (b := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("no browser; install one with: apt-get install chromium")
    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = window.new_page(viewport={"width": 1000, "height": 900})
        page.goto(f"{gallery.resolve().as_uri()}#{view}")
        page.locator(".picture img").first.wait_for()
        page.wait_for_timeout(
            1000
        )  # pictures far down the page are not loaded, so there is no end to wait for
        page.screenshot(path=out)
        window.close()


if __name__ == "__main__":
    typer.run(main)
