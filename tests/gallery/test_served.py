"""The page and its server: votes are sent at once, and kept while the server is silent."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from diffalign.evaluate.results import prompt_id
from diffalign.gallery.write import page_of
from diffalign.votes.rows import parse_vote
from tests.gallery.conftest import write_results

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROMPTS = [f"a circle, number {n}" for n in range(6)]


class Desk(ThreadingHTTPServer):
    """A stand-in for the voting server."""

    def __init__(self, html: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.html, self.votes, self.tokens = html, [], set()
        self.next: dict[str, Any] | None = None
        self.mood = 201


class Handler(BaseHTTPRequestHandler):
    """Answers as agreed between page and server."""

    server: Desk

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        self.server.tokens.add(self.headers.get("Authorization"))
        if address.path == "/":
            return self.answer(200, self.server.html, "text/html")
        if address.path == "/votes":
            (rater,) = parse_qs(address.query)["rater"]
            return self.answer(200, "".join(v for v in self.server.votes if json.loads(v)["rater"] == rater))
        return self.answer(200, json.dumps(self.server.next)) if self.server.next else self.answer(204, "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.server.mood == 201:
            self.server.votes.append(body + "\n")
        self.answer(self.server.mood, json.dumps({"count": len(self.server.votes), "detail": "not so"}))

    def answer(self, code: int, body: str, kind: str = "application/json") -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    html, _ = page_of([write_results(tmp_path / "results", PROMPTS)])
    desk = Desk(html)
    threading.Thread(target=desk.serve_forever, daemon=True).start()
    yield desk
    desk.shutdown()
    desk.server_close()


def begin(browser: Browser, desk: Desk, query: str = "") -> Page:
    """A browser that was never here before."""
    page = browser.new_context().new_page()
    page.goto(f"http://127.0.0.1:{desk.server_address[1]}/{query}#view=vote")
    page.fill("#rater", "ann")
    page.click("#begin")
    ready(page)
    return page


def ready(page: Page) -> None:
    for _ in range(300):
        if page.evaluate("session.pair !== null && session.since > 0"):
            return
        page.wait_for_timeout(10)
    raise AssertionError("no pair came")


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)
        ready(page)


@pytest.mark.slow
def test_votes_go_to_the_server_and_come_back(browser: Browser, desk: Desk) -> None:
    page = begin(browser, desk, "?token=secret")
    press(page, "ArrowLeft", "ArrowUp")
    assert [parse_vote(v, "sent").rater for v in desk.votes] == ["ann", "ann"]
    assert "Bearer secret" in desk.tokens
    assert "not sent" not in page.locator("#progress").inner_text()
    page.context.close()
    other = begin(browser, desk)  # on another machine
    assert other.evaluate("votes.map((vote) => JSON.stringify(vote) + '\\n')") == desk.votes
    other.context.close()


@pytest.mark.slow
def test_nothing_is_lost_while_the_server_is_silent(browser: Browser, desk: Desk) -> None:
    page = begin(browser, desk)
    page.route("**/votes", lambda route: route.abort())
    press(page, "ArrowLeft", "ArrowRight")
    assert "The server does not answer" in page.locator("#warning").inner_text()
    assert "2 not sent" in page.locator("#progress").inner_text()
    page.unroute("**/votes")
    press(page, "ArrowUp")
    assert len(desk.votes) == 3
    assert not page.locator("#warning").is_visible()
    page.context.close()


@pytest.mark.slow
def test_a_refusal_is_said_and_does_not_hold_up_the_others(browser: Browser, desk: Desk) -> None:
    page = begin(browser, desk)
    desk.mood = 422
    press(page, "ArrowLeft")
    assert page.locator("#warning").inner_text() == "The server refused a vote: not so"
    desk.mood = 201
    press(page, "ArrowLeft")
    assert len(desk.votes) == 2  # the first one was tried again
    page.context.close()


@pytest.mark.slow
def test_the_server_may_choose_the_pair(browser: Browser, desk: Desk) -> None:
    name = prompt_id(PROMPTS[4])
    desk.next = {"prompt_id": name, "seed": 1, "a": "zebra-kto", "b": "base"}
    page = begin(browser, desk)
    assert page.locator("#asked").inner_text() == PROMPTS[4]
    press(page, "ArrowLeft")
    vote = parse_vote(desk.votes[0], "sent")
    assert (vote.prompt_id, vote.seed, vote.a.model, vote.b.model) == (name, 1, "zebra-kto", "base")
    page.context.close()
