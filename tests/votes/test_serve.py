"""gallery serve: no vote is lost, bad ones are refused, tabs and raters do not disturb each other."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest
import uvicorn

from diffalign.evaluate.results import Row
from diffalign.gallery.write import page_of
from diffalign.votes.next_pair import Schedule
from diffalign.votes.pictures import find_pictures, gallery_hash
from diffalign.votes.rows import Vote, VoteError, read_votes
from diffalign.votes.serve import ServeOptions, Service, make_app
from diffalign.votes.store import VoteStore, export_votes
from tests.votes.helpers import results, vote

RATERS = 50
SERVER = """
import sys
from pathlib import Path
from diffalign.votes.pictures import find_pictures, gallery_hash
from diffalign.votes.serve import ServeOptions, Service, make_app, run
from diffalign.votes.store import VoteStore
folder, port = Path(sys.argv[1]), int(sys.argv[2])
options = ServeOptions(port=port)
pictures = find_pictures([folder])
store = VoteStore(folder / "votes.sqlite")
service = Service("<html>", gallery_hash(pictures.rows), pictures, store, options)
run(make_app(service), options, lambda: print("ready", flush=True))
"""

COMMAND = """
import typer
from diffalign.votes.command import gallery_serve
typer.run(gallery_serve)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def ask(url: str, body: bytes | None = None, method: str | None = None, **headers: str) -> tuple[int, str]:
    kind = {"Content-Type": "application/json"} if body is not None else {}
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        request = urllib.request.Request(url, data=body, headers=kind | given, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def line(given: Vote) -> bytes:
    return given.model_dump_json().encode()


class Running:
    """A server in a thread, on pictures of its own."""

    def __init__(self, folder: Path, options: ServeOptions, prompts: int = 4) -> None:
        self.rows: list[Row] = results(folder, prompts)
        self.folder, self.url = folder, f"http://127.0.0.1:{options.port}"
        self.store = VoteStore(folder / "votes.sqlite")
        service = Service(
            "<p>page</p>", gallery_hash(self.rows), find_pictures([folder]), self.store, options
        )
        self.server = uvicorn.Server(uvicorn.Config(make_app(service), port=options.port, log_level="error"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.store.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    found = Running(tmp_path, ServeOptions(port=free_port(), token=None, body=2000))
    yield found
    found.stop()


def test_a_vote_is_stored_once_and_comes_back_letter_by_letter(running: Running) -> None:
    body = line(vote(running.rows, 0, "a")).replace(b"08:00:00Z", b"08:00:00.120Z")
    assert ask(f"{running.url}/votes", body) == (201, '{"count":1}')
    assert ask(f"{running.url}/votes", body) == (200, '{"count":1}')
    assert ask(f"{running.url}/votes", line(vote(running.rows, 1, "b", rater="ben")))[0] == 201
    status, text = ask(f"{running.url}/votes?rater=anna")
    assert status == 200
    assert [json.loads(row) for row in text.splitlines()] == [json.loads(body)]
    assert len(ask(f"{running.url}/votes")[1].splitlines()) == 2
    assert ask(f"{running.url}/votes?rater=nobody") == (200, "")
    assert ask(f"{running.url}/") == (200, "<p>page</p>")


def test_two_tabs_of_one_rater_keep_both_their_votes(running: Running) -> None:
    """Each tab votes on the same pair, at the same second."""
    tabs = [vote(running.rows, 0, choice, ms=ms) for choice, ms in (("a", 900), ("b", 1000))]
    assert [ask(f"{running.url}/votes", line(v))[0] for v in tabs] == [201, 201]
    stored = [json.loads(r)["choice"] for r in ask(f"{running.url}/votes?rater=anna")[1].splitlines()]
    assert stored == ["a", "b"]


def test_a_vote_that_is_taken_back_counts_no_more_even_if_it_comes_late(running: Running) -> None:
    url, given = f"{running.url}/votes", [vote(running.rows, 0, c, at=i) for i, c in enumerate("ab")]
    first, again = map(line, given)
    assert ask(url, first) == (201, '{"count":1}')
    assert ask(url, first, method="DELETE") == ask(url, first, method="DELETE") == (200, '{"count":0}')
    assert ask(url) == (200, "")
    assert ask(url, first) == (200, '{"count":0}'), "sent again by a tab that had no answer"
    assert ask(url, again, method="DELETE")[0] == 200
    assert ask(url, again) == (200, '{"count":0}'), "overtaken on its way"
    assert ask(url, b"{", method="DELETE")[0] == 422
    last = line(vote(running.rows, 0, "tie", at=2))
    assert ask(url, last) == (201, '{"count":1}')
    assert [json.loads(r)["choice"] for r in ask(url)[1].splitlines()] == ["tie"]
    export_votes(running.store.path, running.folder / "v.jsonl")
    assert [v.choice for v in read_votes([running.folder / "v.jsonl"])] == ["tie"]


def test_a_pair_whose_vote_was_taken_back_is_to_be_voted_on(tmp_path: Path) -> None:
    rows = results(tmp_path, 2)
    schedule, given = Schedule(rows), vote(rows, 0, "a")
    schedule.record(given)
    schedule.record(vote(rows, 1, "a"))
    assert schedule.next("anna") is None
    schedule.forget(given)
    found = schedule.next("anna")
    assert found is not None
    assert found.a.prompt == "prompt 0"
    schedule.next("anna")
    assert sorted(schedule.voted.values()) == [0, 1]


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"choice": "c"}, 422, "choice"),
        ({"gallery": "f" * 64}, 409, "another gallery"),
        ({"seed": 7}, 422, "no such picture"),
        ({"a": {"model": "nobody", "sha256": "0" * 64}}, 422, "no such picture"),
        ({"a": {"model": "base", "sha256": "0" * 64}}, 422, "no such picture"),
        ({"prompt": "another"}, 422, "reads differently"),
        ({"rater": ""}, 422, "rater"),
        ({"more": 1}, 422, "more"),
        ({"anchor": "a"}, 422, "of an anchor"),
        ({"note": "x" * 3000}, 413, "at most 2000"),
    ],
)
def test_bad_votes_are_refused(running: Running, change: dict[str, object], status: int, word: str) -> None:
    body = json.dumps(json.loads(line(vote(running.rows, 0, "a"))) | change).encode()
    found, text = ask(f"{running.url}/votes", body)
    assert (found, word in json.loads(text)["detail"]) == (status, True), text
    assert ask(f"{running.url}/votes") == (200, "")


def test_what_is_no_vote_at_all_is_refused(running: Running) -> None:
    url = f"{running.url}/votes"
    good = line(vote(running.rows, 0, "a"))
    assert ask(url, b"{")[0] == ask(url, b"[]")[0] == ask(url, b"\xff")[0] == 422
    assert ask(url, good, Content_Type="text/plain")[0] == 415
    assert ask(url, b"x" * 200_000)[0] == 413
    assert ask(url, good, Origin="http://elsewhere.example")[0] == 403
    assert ask(url, good, Host="elsewhere.example")[0] == 403
    assert ask(f"{running.url}/next")[0] == 422
    assert ask(url) == (200, "")
    same = running.url
    assert ask(url, good, Origin=same)[0] == 201


def test_a_token_is_needed_where_one_is_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0 can be reached.*GALLERY_TOKEN"):
        ServeOptions(host="0.0.0.0", token=None)
    found = Running(tmp_path, ServeOptions(port=free_port(), token="t"))
    for path in ("/", "/votes", "/next?rater=r"):
        sign = "&" if "?" in path else "?"
        assert ask(found.url + path)[0] == ask(f"{found.url}{path}{sign}token=u")[0] == 401
        assert ask(f"{found.url}{path}{sign}token=t")[0] == 200
        assert ask(found.url + path, Authorization="Bearer t")[0] == 200
    assert ask(f"{found.url}/health")[0] == 200
    found.stop()


def test_pictures_of_a_large_gallery_are_asked_for_one_by_one(tmp_path: Path) -> None:
    found = Running(tmp_path, ServeOptions(port=free_port(), token="t"))
    row = found.rows[0]
    page, name = page_of([tmp_path], embed_limit=0, query="?token=t")
    assert f"pictures/{row.sha256}.png?token=t" in page
    assert "data:image" not in page
    assert name == gallery_hash(found.rows) == page_of([tmp_path])[1]
    address = f"{found.url}/pictures/{row.sha256}.png"
    assert ask(address)[0] == 401
    with urllib.request.urlopen(f"{address}?token=t", timeout=60) as answer:
        assert answer.read() == (tmp_path / row.path).read_bytes()
        assert answer.headers["Content-Type"] == "image/png"
    for other in ("0" * 64 + ".png", "results.jsonl", "..%2Fresults.jsonl"):
        assert ask(f"{found.url}/pictures/{other}?token=t")[0] == 404
    found.stop()


def test_next_goes_round_the_pairs_and_over_the_raters(running: Running) -> None:
    names = {r.prompt_id: i for i, r in enumerate(running.rows[:4])}
    first = [json.loads(ask(f"{running.url}/next?rater=r{i}")[1])["prompt_id"] for i in range(4)]
    assert sorted(names[p] for p in first) == [0, 1, 2, 3], "raters at the same time get different pairs"
    seen = []
    while (answer := ask(f"{running.url}/next?rater=anna"))[0] == 200:
        pair = json.loads(answer[1])
        assert (pair["a"], pair["b"], pair["seed"]) == ("base", "dpo", 0)
        seen.append(names[pair["prompt_id"]])
        assert ask(f"{running.url}/votes", line(vote(running.rows, seen[-1], "skip")))[0] == 201
    assert (sorted(seen), answer) == ([0, 1, 2, 3], (204, ""))


def test_a_schedule_follows_its_chooser_and_what_was_voted(tmp_path: Path) -> None:
    rows = results(tmp_path, 6, scores=("x", "y"))
    schedule = Schedule(rows, "disagreement")
    first = schedule.next("anna")
    assert first is not None
    assert first == schedule.pairs[0] == schedule.next("anna")
    assert schedule.next("ben") == schedule.pairs[1]
    prompts = [r.prompt for r in rows[:6]]
    schedule.record(vote(rows, prompts.index(first.a.prompt), "a", rater="cleo"))
    assert schedule.next("dan") == schedule.pairs[2]
    for i in range(6):
        schedule.record(vote(rows, i, "a", rater="eva", aspect="looks"))
    assert schedule.next("eva") is None
    assert schedule.next("eva", "looks") is None
    assert schedule.next("eva", "overall") is not None
    with pytest.raises(VoteError, match="no way to choose"):
        Schedule(rows, "best")
    with pytest.raises(VoteError, match="no two models"):
        Schedule(rows[:6])


def test_a_file_of_another_gallery_is_refused_and_export_goes_on(tmp_path: Path) -> None:
    rows = results(tmp_path / "one")
    store = VoteStore(tmp_path / "votes.sqlite")
    given = vote(rows, 0, "a")
    store.add(given, given.model_dump_json())
    results(tmp_path / "two", seed=1)
    pictures = find_pictures([tmp_path / "two"])
    with pytest.raises(VoteError, match="votes of another gallery"):
        Service("", gallery_hash(pictures.rows), pictures, store, ServeOptions())
    assert export_votes(tmp_path / "votes.sqlite", tmp_path / "v.jsonl") == 1
    assert read_votes([tmp_path / "v.jsonl"]) == [given]
    with pytest.raises(FileExistsError):
        export_votes(tmp_path / "votes.sqlite", tmp_path / "v.jsonl")
    with pytest.raises(VoteError, match="there are no votes"):
        export_votes(tmp_path / "nothing.sqlite", tmp_path / "w.jsonl")
    (tmp_path / "text").write_text("this is no database, whatever else it may be " * 40)
    with pytest.raises(VoteError, match="is no file of votes"):
        VoteStore(tmp_path / "text")


@pytest.mark.slow
def test_the_page_and_the_server_call_the_gallery_the_same(tmp_path: Path) -> None:
    write = pytest.importorskip("diffalign.gallery.write")
    rows = results(tmp_path / "run", 3, ("base", "dpo", "kto"), seeds=2)
    page, name = write.page_of([tmp_path / "run"], server=True)
    assert name == gallery_hash(rows)
    port = free_port()
    command = [sys.executable, "-c", COMMAND, str(tmp_path / "run"), "--votes", str(tmp_path / "v.sqlite")]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert str(port) in server.stdout.readline()
    url = f"http://127.0.0.1:{port}"
    while True:
        with contextlib.suppress(OSError):
            status, text = ask(f"{url}/")
            break
    assert (status, text) == (200, page)
    assert ask(f"{url}/votes", line(vote(rows, 2, "both_bad", models=("base", "kto"))))[0] == 201
    server.send_signal(signal.SIGINT)
    assert server.wait(20) == 0
    assert export_votes(tmp_path / "v.sqlite", tmp_path / "v.jsonl") == 1


@pytest.mark.slow
def test_fifty_raters_lose_no_vote_though_the_server_is_killed(tmp_path: Path) -> None:
    """The server dies by signal 9 twice while 50 raters vote; each sends again what was not answered."""
    rows, port = results(tmp_path, 8), free_port()
    servers = [start(tmp_path, port)]
    acknowledged: list[bytes] = []

    def rate(number: int) -> None:
        for i in range(8):
            body = line(vote(rows, i, "ab"[(number + i) % 2], rater=f"r{number}", at=i))
            until = time.monotonic() + 120
            while time.monotonic() < until:
                try:
                    status, _ = ask(f"http://127.0.0.1:{port}/votes", body)
                except (OSError, HTTPException):  # also an answer that was cut short
                    time.sleep(0.05)
                    continue
                assert status in (200, 201)
                acknowledged.append(body)
                break

    with ThreadPoolExecutor(RATERS) as pool:
        work = [pool.submit(rate, n) for n in range(RATERS)]
        for part in (0.25, 0.6):
            while len(acknowledged) < part * RATERS * 8:
                time.sleep(0.005)
            os.kill(servers[-1].pid, signal.SIGKILL)
            servers[-1].wait(10)
            servers.append(start(tmp_path, port))
        for one in work:
            one.result(120)
    stored = [json.loads(r) for r in ask(f"http://127.0.0.1:{port}/votes")[1].splitlines()]
    servers[-1].terminate()
    servers[-1].wait(10)
    assert len(acknowledged) == RATERS * 8
    assert sorted(json.dumps(s) for s in stored) == sorted(json.dumps(json.loads(b)) for b in acknowledged)


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder), str(port)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server
