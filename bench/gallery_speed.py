"""How fast galleries of 200 and of 2,000 prompts open, scroll, sort and filter in headless Chromium.

python bench/gallery_speed.py                          # prints a table
python bench/gallery_speed.py --into docs/gallery.md   # and puts it between the marks of that file
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from diffalign.evaluate.report import write_atomic
from diffalign.evaluate.results import Row, prompt_id, write_rows
from diffalign.gallery.write import write_gallery_of

BEGIN, END = "<!-- gallery speed -->", "<!-- /gallery speed -->"
MODELS = ("base", "first", "second")
OPENED = "() => document.querySelector('.picture img')?.complete && performance.now()"
FRAMES = """async () => {
    const step = document.documentElement.scrollHeight / 100, times = [];
    for (let n = 0, last = performance.now(); n < 100; n++) {
        scrollBy(0, step);
        await new Promise(requestAnimationFrame);
        times.push(performance.now() - last);
        last = performance.now();
    }
    return times.sort((x, y) => x - y);
}"""

TIMED = "() => {{ const t = performance.now(); {}; return performance.now() - t; }}"


def main(
    side: Annotated[int, typer.Option(help="side of the pictures in pixels")] = 512,
    into: Annotated[Path | None, typer.Option(help="file with the marks of the table")] = None,
) -> None:
    """Write both galleries to a temporary folder, visit them, and show what was measured."""
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        browser = shutil.which("chromium") or shutil.which("google-chrome")
        window = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        load, columns = os.getloadavg()[0], {}
        for prompts in (200, 2000):
            root = _results(Path(scratch) / str(prompts), prompts, side)
            page = write_gallery_of([root], Path(scratch) / f"{prompts}.html")
            visit = _visit(window.new_page(viewport={"width": 1280, "height": 900}), page)
            columns[f"{prompts:,} prompts x {len(MODELS)} models"] = visit
        window.close()
    text = (
        table(columns)
        + f"\nPictures of {side} pixels; {os.cpu_count()} cores; load at the start {load:.1f}.\n"
    )
    typer.echo(text)
    if into is not None:
        _put(text, into)


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown of figures by gallery and then by name."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    names = next(iter(columns.values()))
    lines += [f"| {name} | {' | '.join(c[name] for c in columns.values())} |" for name in names]
    return "\n".join(lines) + "\n"


def _put(text: str, file: Path) -> None:
    old = file.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        raise typer.BadParameter(f"{file} must hold {BEGIN} and {END}, each once")
    before, rest = old.split(BEGIN)
    write_atomic(file, f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")


def _results(root: Path, prompts: int, side: int) -> Path:
    """Pictures with the detail of photographs (40 to 60 kB each as WebP); 60 files, used again and again."""
    rng, rows = np.random.default_rng(0), []
    for n in range(60):
        small = Image.fromarray(rng.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8))
        root.mkdir(parents=True, exist_ok=True)
        small.resize((side, side), Image.Resampling.BICUBIC).save(root / f"{n}.webp", quality=85)
    digests = [hashlib.sha256((root / f"{n}.webp").read_bytes()).hexdigest() for n in range(60)]
    for p in range(prompts):
        for m, model in enumerate(MODELS):
            n, text = (3 * p + m) % 60, f"prompt {p} of something with a background and a few words more"
            score = {"a": float(rng.normal() + m), "b": float(rng.normal())}
            row = Row(
                prompt_id=prompt_id(text),
                prompt=text,
                category=f"c{p % 8}",
                seed=0,
                model=model,
                path=f"{n}.webp",
                width=side,
                height=side,
                sha256=digests[n],
                scores=score,
            )
            rows.append(row)
    write_rows(root, rows)
    return root


def _visit(page: Page, file: Path) -> dict[str, str]:
    watch = page.context.new_cdp_session(page)
    watch.send("Performance.enable", {"timeDomain": "threadTicks"})
    start = time.perf_counter()
    page.goto(file.as_uri())
    while not page.evaluate(OPENED):
        time.sleep(0.01)
    opened = time.perf_counter() - start
    found = {one["name"]: one["value"] for one in watch.send("Performance.getMetrics")["metrics"]}
    frames = page.evaluate(FRAMES)
    acts = {
        "sort": "change({sort: 'best'})",
        "filter": "change({text: '77'})",
        "no filter again": "change({text: ''})",
        "summary": "change({view: 'summary'})",
    }
    spent = {name: page.evaluate(TIMED.format(act)) for name, act in acts.items()}
    return {
        "file": f"{file.stat().st_size / 2**20:.0f} MB",
        "memory of the script": f"{page.evaluate('performance.memory.usedJSHeapSize') / 2**20:.0f} MB",
        "first pictures after": f"{opened:.1f} s",
        "of it on the page's own thread": f"{found['TaskDuration']:.1f} s",
        "frame while scrolling the whole page in 100 steps, median": f"{frames[50]:.0f} ms",
        "longest": f"{frames[-1]:.0f} ms",
    } | {name: f"{ms:.0f} ms" for name, ms in spent.items()}


if __name__ == "__main__":
    typer.run(main)
