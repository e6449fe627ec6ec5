"""The page and its server: votes are sent at once, kept while the server is silent, and taken back by undo.

A stand-in says what the page sends, and can be in a bad mood; the last test has the real server.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from diffalign.evaluate.results import prompt_id
from diffalign.gallery.write import page_of
from diffalign.votes.rows import Vote, parse_vote, read_votes
from diffalign.votes.store import export_votes
from tests.gallery.conftest import write_results

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

COMMAND = "from diffalign.cli import main; main()"
PROMPTS = [f"a circle, number {n}" for n in range(6)]


class Desk(ThreadingHTTPServer):
    """A stand-in for the voting server."""

    def __init__(self, html: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.html, self.votes, self.tokens = html, [], set()
        self.next: dict[str, Any] | None = None
        self.asked: list[dict[str, list[str]]] = []
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
        self.server.asked.append(parse_qs(address.query))
        return self.answer(200, json.dumps(self.server.next)) if self.server.next else self.answer(204, "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.server.mood == 201:
            self.server.votes.append(body + "\n")
        self.answer(self.server.mood, json.dumps({"count": len(self.server.votes), "detail": "not so"}))

    def do_DELETE(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.votes.remove(body + "\n")
        self.answer(200, json.dumps({"count": len(self.server.votes)}))

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
    return sit_down(browser.new_context().new_page(), f"http://127.0.0.1:{desk.server_address[1]}/{query}")


def sit_down(page: Page, address: str, rater: str = "ann") -> Page:
    page.goto("about:blank")  # so that the page is loaded anew, also where it is open
    page.goto(f"{address}#view=vote")
    page.fill("#rater", rater)
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
    assert desk.asked[0] == {"rater": ["ann"], "aspect": ["overall"]}
    page.context.close()


@pytest.mark.slow
def test_what_is_undone_is_taken_back_also_when_the_server_was_silent(browser: Browser, desk: Desk) -> None:
    page = begin(browser, desk)
    press(page, "ArrowLeft", "ArrowUp", "z")
    assert [json.loads(v)["choice"] for v in desk.votes] == [page.evaluate("votes[0].choice")]
    page.route("**/votes", lambda route: route.abort())
    press(page, "z")
    assert len(desk.votes) == 1
    page.unroute("**/votes")
    press(page, "ArrowUp")
    assert [json.loads(v)["choice"] for v in desk.votes] == ["tie"]
    page.context.close()


HOLD = """() => {
  const real = window.fetch;
  const gate = new Promise((open) => { window.letGo = open; });
  window.fetch = async (...request) => { await gate; return real(...request); };
}"""


@pytest.mark.slow
def test_a_key_that_overtakes_an_undo_votes_on_nothing(browser: Browser, desk: Desk) -> None:
    page = begin(browser, desk)
    press(page, "ArrowLeft")
    page.evaluate(HOLD)
    page.keyboard.press("z")
    page.keyboard.press("ArrowLeft")  # the pair that was taken back is not there yet
    page.evaluate("letGo()")
    ready(page)
    assert page.evaluate("votes.length") == 0
    press(page, "ArrowLeft")
    assert len(desk.votes) == page.evaluate("votes.length") == 1
    page.context.close()


class Served:
    """The real server, as the command line starts it."""

    def __init__(self, results: Path, votes: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = str(found.getsockname()[1])
        self.command = [
            sys.executable,
            "-c",
            COMMAND,
            "gallery",
            "serve",
            str(results),
            "--votes",
            str(votes),
        ]
        self.votes = votes
        self.address = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        command = [*self.command, "--port", self.port]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.port in self.process.stdout.readline()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def export(self, file: Path) -> list[Vote]:
        export_votes(self.votes, file)
        return read_votes([file])


def in_browser(page: Page) -> list[Vote]:
    return [parse_vote(text, "kept") for text in page.evaluate("votes.map((vote) => JSON.stringify(vote))")]


@pytest.mark.slow
def test_two_raters_vote_with_the_real_server_which_is_killed(browser: Browser, tmp_path: Path) -> None:
    served = Served(write_results(tmp_path / "results", PROMPTS), tmp_path / "votes.sqlite")
    try:
        ann, ben = (browser.new_context().new_page() for _ in range(2))
        sit_down(ann, served.address)
        sit_down(ben, served.address, "ben")
        press(ann, "ArrowLeft", "ArrowUp", "z", "ArrowDown")
        press(ben, "ArrowRight", "ArrowRight")
        served.kill()
        press(ann, "z", "ArrowLeft")  # both while nobody answers
        assert "The server does not answer" in ann.locator("#warning").inner_text()
        served.start()
        press(ann, "ArrowRight")
        assert not ann.locator("#warning").is_visible()
        expected = in_browser(ann)
        sit_down(ann, served.address)  # the page anew
        assert in_browser(ann) == expected
        assert len(expected) == 3
        stored = served.export(tmp_path / "votes.jsonl")
        assert sorted(v.model_dump_json() for v in stored) == sorted(
            v.model_dump_json() for v in [*expected, *in_browser(ben)]
        )
        ann.context.close()
        ben.context.close()
    finally:
        served.kill()
