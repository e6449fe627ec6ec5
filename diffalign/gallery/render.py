"""The page: HTML, style and script, which stand in files of their own, put into one with its data."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

SCRIPTS = ("base", "votes", "numbers", "grid", "compare", "summary", "vote", "start")
"""In this order they make one program."""


def render(payload: Mapping[str, Any], *, server: bool) -> str:
    """Return the HTML of what ``payload.payload`` made.

    Args:
        payload: the page's data; its texts are not trusted and never become markup.
        server: the page is served and may talk to the server that it came from, and to nobody else. A file
            talks to nobody: its content security policy has no ``connect-src``.
    """
    environment = Environment(
        loader=PackageLoader("diffalign.gallery", "page"), autoescape=True, undefined=StrictUndefined
    )
    # sort_keys would lose the order of the report's lines, and NaN is no JSON.
    environment.policies["json.dumps_kwargs"] = {
        "sort_keys": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    return environment.get_template("page.html").render(
        title=payload["title"],
        data={**payload, "server": server},
        server=server,
        style=_source("page.css"),
        script="\n".join(_source(f"{name}.js") for name in SCRIPTS),
    )


def _source(name: str) -> str:
    return (files("diffalign.gallery") / "page" / name).read_text(encoding="utf-8")
