"""The page's own source: small, and without ways to make markup of texts."""

from __future__ import annotations

import re
from pathlib import Path

from diffalign.gallery.render import SCRIPTS

PAGE = Path(__file__).parents[2] / "diffalign" / "gallery" / "page"


def test_the_script_is_below_a_thousand_lines() -> None:
    assert sorted(file.stem for file in PAGE.glob("*.js")) == sorted(SCRIPTS)
    lines = {name: len((PAGE / f"{name}.js").read_text(encoding="utf-8").splitlines()) for name in SCRIPTS}
    assert sum(lines.values()) < 1000, lines


def test_texts_never_become_markup() -> None:
    program = "".join((PAGE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(", program) == []
    assert re.findall(r"\|\s*safe", (PAGE / "page.html").read_text(encoding="utf-8")) == ["| safe"] * 2
