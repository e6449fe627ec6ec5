"""Reward server and client on loopback: nothing is lost, bad requests are refused, the server lives."""

from __future__ import annotations

import contextlib
import io
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from torch import Tensor

from scorers.base import ScorerBase
from scorers.client import ClientOptions, RemoteError, RemoteScorer
from scorers.each import Outcome, score_each
from scorers.protocol import Details
from scorers.server import TOKEN_VARIABLE, ServerOptions, is_loopback, make_app, serve
from scorers.service import identity
from scorers.wire import NPZ, SAFETENSORS, Limits, TooLargeError, WireError, decode, encode, encode_npz

LIMITS = Limits(body=200_000, items=8, pixels=64 * 64, prompt=100)


class Bright(ScorerBase):
    """Mean brightness plus the length of the prompt; refuses the prompt ``bad``."""

    name, licence, citation = "bright", "none", "none"
    range = (0.0, 200.0)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        if "bad" in prompts:
            raise ValueError("the prompt is bad")
        if "broken" in prompts:
            raise RuntimeError("secret detail")
        return x01.mean((1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def running(scorer: ScorerBase, options: ServerOptions) -> Iterator[str]:
    """The address of a server in a thread."""
    app = make_app(scorer, options)
    config = uvicorn.Config(app, host="127.0.0.1", port=options.port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{options.port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with the token ``t``."""
    with running(Bright(), ServerOptions(port=free_port(), token="t", limits=LIMITS)) as address:
        yield address


def post(url: str, body: bytes, kind: str = SAFETENSORS, token: str = "t", path: str = "/score") -> Any:
    request = urllib.request.Request(
        url + path, data=body, headers={"Content-Type": kind, "Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_200_concurrent_requests_lose_nothing(url: str) -> None:
    pictures = torch.rand(200, 3, 6, 6)
    bodies = [encode([p], ["x" * (i % 50 + 1)]) for i, p in enumerate(pictures)]
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda body: post(url, body), bodies))
    assert [status for status, _ in answers] == [200] * 200
    for i, (_, answer) in enumerate(answers):
        (outcome,) = answer["outcomes"]
        assert outcome["status"] == "ok"
        assert outcome["score"] == pytest.approx(float(pictures[i].mean()) + i % 50 + 1, abs=1e-5)


def test_client_scores_like_the_scorer_itself(url: str) -> None:
    remote, local = RemoteScorer(url, "t", ClientOptions(chunk=3, workers=2)), Bright()
    images = [torch.rand(3, 8, 8) for _ in range(7)] + [
        torch.rand(3, 5, 9),
        torch.randint(0, 256, (3, 4, 4)).byte(),
    ]
    prompts = [f"prompt {i}" for i in range(9)]
    found, wanted = remote(images, prompts), local(images, prompts)
    assert torch.equal(found.score, wanted.score)
    assert found.status == ("ok",) * 9
    assert found.meta["scorer"] == "bright"
    assert found.meta["server"] == url
    assert (remote.range, remote.dims, remote.differentiable) == ((0.0, 200.0), ("preference",), False)
    assert torch.equal(remote.score_tensor(torch.zeros(2, 3, 4, 4), ["a", "bc"]), torch.tensor([1.0, 2.0]))


def test_each_picture_has_its_own_status(url: str) -> None:
    remote = RemoteScorer(url, "t")
    found = remote(torch.zeros(4, 3, 4, 4), ["a", "bad", "b", "x" * 90])
    assert [s[:6] for s in found.status or ()] == ["ok", "failed", "ok", "ok"]
    assert "the prompt is bad" in (found.status or ())[1]
    assert found.score[1].isnan()
    with pytest.raises(RemoteError, match="1 of 2 pictures failed; 1: failed: the prompt is bad"):
        remote.score_tensor(torch.zeros(2, 3, 4, 4), ["a", "bad"])
    status, answer = post(url, encode([torch.zeros(3, 2, 2)], ["broken"]))
    assert status == 200
    assert "RuntimeError" in answer["outcomes"][0]["status"]
    assert "secret" not in answer["outcomes"][0]["status"]


def test_npz_and_encoded_files_are_understood(url: str) -> None:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), "white").save(buffer, "PNG")
    file = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    float_ = np.full((3, 2, 2), 0.5, np.float32)
    broken, nan = file[:30], np.full((3, 2, 2), np.nan, np.float32)
    status, answer = post(url, encode_npz([file, float_, broken, nan], ["a", "b", "c", "d"]), NPZ)
    assert status == 200
    assert [o["score"] for o in answer["outcomes"]] == [2.0, 1.5, None, None]
    assert "[0, 1]" in answer["outcomes"][3]["status"]
    large = np.zeros((3, 65, 64), np.uint8)
    assert "at most 4096" in post(url, encode_npz([large], ["a"]), NPZ)[1]["outcomes"][0]["status"]


def bomb() -> bytes:
    """A small npz that unpacks to much."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{"image.0": np.zeros((3, 512, 512), np.uint8)})
    return buffer.getvalue()


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.savez(
        buffer, **{"image.0": np.array([{"a": 1}], dtype=object)}, prompts=np.frombuffer(b'["a"]', np.uint8)
    )
    return buffer.getvalue()


ONE = encode([torch.zeros(3, 2, 2)], ["a"])
BAD: dict[str, tuple[bytes, str, str, int]] = {
    "rubbish": (b"rubbish", SAFETENSORS, "t", 400),
    "empty": (b"", SAFETENSORS, "t", 400),
    "no npz": (b"PK\x03\x04rubbish", NPZ, "t", 400),
    "pickle inside": (pickled(), NPZ, "t", 400),
    "other type": (ONE, "application/x-pickle", "t", 400),
    "cut off": (ONE[:-3], SAFETENSORS, "t", 400),
    "counts differ": (encode([torch.zeros(3, 2, 2)], ["a", "b"]), SAFETENSORS, "t", 400),
    "no token": (ONE, SAFETENSORS, "", 401),
    "wrong token": (ONE, SAFETENSORS, "T", 401),
    "too many": (encode([torch.zeros(3, 2, 2)] * 9, ["a"] * 9), SAFETENSORS, "t", 413),
    "too large": (b"0" * 300_000, SAFETENSORS, "t", 413),
    "bomb": (bomb(), NPZ, "t", 413),
    "long prompt": (encode([torch.zeros(3, 2, 2)], ["a" * 101]), SAFETENSORS, "t", 413),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_and_the_server_lives(url: str, name: str) -> None:
    body, kind, token, wanted = BAD[name]
    status, answer = post(url, body, kind, token)
    assert status == wanted, answer
    assert len(answer["error"]) > 10
    assert post(url, ONE)[0] == 200


def test_health_needs_no_token_but_about_does(url: str) -> None:
    found = health(url)
    assert (found["status"], found["held"], found["pending"]) == ("ok", 0, 0)
    assert found["id"] == RemoteScorer(url, "t").identity
    with pytest.raises(RemoteError, match=r"401.*SCORERS_TOKEN"):
        RemoteScorer(url, "wrong")


def health(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "/health", timeout=10) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def test_a_dead_address_fails_soon_whatever_the_patience() -> None:
    options, start = ClientOptions(start=0.3, backoff=0.05), time.monotonic()
    with pytest.raises(RemoteError, match=r"no answer in 0\.3 s.*is the server running"):
        RemoteScorer(f"http://127.0.0.1:{free_port()}", options=options)
    assert time.monotonic() - start < 3


def test_connecting_has_a_time_of_its_own() -> None:
    with socket.socket() as silent:  # its queue is full, so that no connection ever stands
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        address, start = silent.getsockname(), time.monotonic()
        with contextlib.ExitStack() as waiting:
            for _ in range(3):
                caller = waiting.enter_context(socket.socket())
                caller.setblocking(False)
                caller.connect_ex(address)
            options = ClientOptions(connect=0.2, start=0.3, backoff=0.05, timeout=30.0)
            with pytest.raises(RemoteError, match=r"no connection in 0\.\d+ s"):
                RemoteScorer("http://{}:{}".format(*address), options=options)
        assert time.monotonic() - start < 3


def test_an_answer_may_take_longer_than_connecting() -> None:
    class Slow(Bright):
        def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
            time.sleep(0.3)
            return super().score_tensor(x01, prompts)

    with running(Slow(), ServerOptions(port=free_port(), token="t")) as url:
        patient = RemoteScorer(url, "t", ClientOptions(connect=0.1, patience=0.1))
        assert patient(torch.zeros(1, 3, 4, 4), "a").status == ("ok",)
        hasty = RemoteScorer(url, "t", ClientOptions(timeout=0.1, patience=0.1, backoff=0.05))
        assert (hasty(torch.zeros(1, 3, 4, 4), "a").status or ("",))[0].startswith("lost: ")


def test_a_server_that_went_away_is_waited_for_once_in_a_call() -> None:
    with running(Bright(), ServerOptions(port=free_port(), token="t")) as url:
        remote = RemoteScorer(url, "t", ClientOptions(patience=0.4, backoff=0.05, chunk=1, workers=2))
    start = time.monotonic()
    found = remote(torch.zeros(60, 3, 4, 4), "a", chunk=60)
    assert time.monotonic() - start < 5
    assert all(word.startswith("lost: ") for word in found.status or ("",))
    assert (found.status or ("",))[-1].endswith("gave no answer to pictures before")


class Weighted(Bright):
    """With a weight."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(level))


def test_what_is_served_is_known_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from diffalign.label.judges import load_judge

    monkeypatch.setenv(TOKEN_VARIABLE, "t")
    assert identity(Weighted(1.0)) == identity(Weighted(1.0)) != identity(Bright())
    options = ServerOptions(port=free_port(), token="t")
    with running(Weighted(1.0), options) as url:
        remote, judge = RemoteScorer(url, "t"), load_judge(url)
        assert remote(torch.zeros(1, 3, 4, 4), "a").status == ("ok",)
        assert load_judge(url).id == judge.id
    with running(Weighted(2.0), options):
        found = remote(torch.zeros(1, 3, 4, 4), "a")
        assert "another scorer or other weights" in (found.status or ("",))[0]
        assert RemoteScorer(url, "t").identity != remote.identity
        assert load_judge(url).id != judge.id


def half_a_request(url: str, body: bytes, sent: int) -> socket.socket:
    """A connection over which a part of a body went."""
    host, port = url.removeprefix("http://").split(":")
    caller = socket.create_connection((host, int(port)), timeout=10)
    head = f"POST /score HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer t\r\n"
    head += f"Content-Type: {SAFETENSORS}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    caller.sendall(head.encode() + body[:sent])
    return caller


def test_all_bodies_together_are_bounded() -> None:
    limits = Limits(body=400_000)
    body = encode([torch.rand(3, 170, 170)], ["a"])  # 347 kB
    options = ServerOptions(port=free_port(), token="t", limits=limits, memory=800_000)
    with running(Bright(), options) as url, ThreadPoolExecutor(1) as pool:
        with half_a_request(url, body, 300_000), half_a_request(url, body, 300_000):
            while health(url)["held"] < 600_000:
                time.sleep(0.01)
            status, answer = post(url, body)
            assert status == 503
            assert "come again" in answer["error"]
            assert post(url, ONE)[0] == 200
            remote = RemoteScorer(url, "t", ClientOptions(backoff=0.05, patience=20))
            waiting = pool.submit(remote, torch.rand(1, 3, 170, 170), "a")
            time.sleep(0.1)
            assert not waiting.done()
        assert waiting.result().status == ("ok",)  # what went away is held no longer
        deadline = time.monotonic() + 5
        while health(url)["held"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert health(url)["held"] == 0
    with pytest.raises(ValueError, match="memory is 1 bytes, but one body may have"):
        ServerOptions(memory=1)


def test_pictures_count_by_what_they_unpack_to() -> None:
    files = [encoded("PNG", (200, 200))] * 2  # some hundred bytes that become 960 kB
    options = ServerOptions(port=free_port(), token="t", limits=Limits(body=500_000), memory=600_000)
    with running(Bright(), options) as url:
        status, answer = post(url, encode_npz(files, ["a"] * 2), NPZ)
        assert status == 413, answer
        assert post(url, encode_npz(files[:1], ["a"]), NPZ)[0] == 200


def test_options_are_checked() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="set a token"):
        ServerOptions(host="0.0.0.0", token=None)
    assert "secret" not in repr(ServerOptions(host="0.0.0.0", token="secret"))
    with pytest.raises(ValueError, match="batch"):
        replace(ServerOptions(), batch=0)
    with pytest.raises(ValueError, match="unencrypted"):
        RemoteScorer("http://example.org", "t")
    with pytest.raises(ValueError, match="no address"):
        RemoteScorer("ftp://example.org")
    with pytest.raises(ValueError, match="workers must be positive"):
        ClientOptions(workers=0)
    scorer = Bright()
    scorer.kind = "pairwise"
    with pytest.raises(ValueError, match="cannot be served"):
        make_app(scorer)


def start(port: int) -> subprocess.Popen[bytes]:
    """A server in a process of its own."""
    code = "from tests.scorers.test_server import Bright; from scorers.server import *; "
    code += f"serve(Bright(), ServerOptions(port={port}, token=None, window=0.02, batch=4))"
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=os.environ.copy()
    )


@pytest.mark.slow
def test_the_client_goes_on_after_the_server_was_killed() -> None:
    port = free_port()
    first = start(port)
    second: list[subprocess.Popen[bytes]] = []
    try:
        remote = RemoteScorer(
            f"http://127.0.0.1:{port}", options=ClientOptions(chunk=2, workers=2, backoff=0.05, start=60.0)
        )
        seen: list[float] = []
        for i in range(60):
            if i == 20:
                first.send_signal(signal.SIGKILL)
                first.wait()
                threading.Timer(1.0, lambda: second.append(start(port))).start()
            seen += remote(torch.zeros(4, 3, 4, 4), "x" * (i + 1)).score.tolist()
        assert seen == [float(i + 1) for i in range(60) for _ in range(4)]
        assert second
    finally:
        for process in (first, *second):
            process.kill()
            process.wait()


def test_a_fault_spoils_no_other_picture(url: str) -> None:
    status, answer = post(url, encode([torch.zeros(3, 2, 2)] * 3, ["a", "broken", "ab"]))
    assert status == 200
    assert [o["score"] for o in answer["outcomes"]] == [1.0, None, 2.0]


def test_what_json_cannot_hold_is_left_out() -> None:
    class Doubtful(Bright):
        def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
            nan = torch.full((len(x01),), torch.nan)
            return Details(score=torch.ones(len(x01)), std=nan, dims={"a": nan})

    (found,) = score_each(Doubtful(), [torch.zeros(3, 2, 2)], ["p"])
    assert json.loads(json.dumps(found.row(), allow_nan=False)) == {"score": 1.0, "status": "ok"}


def encoded(kind: str, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind)
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def test_encoded_pictures_count_by_what_they_unpack_to() -> None:
    limits = Limits(body=3 * 2 * 64 * 64, pixels=64 * 64)
    files = [encoded("PNG", (64, 64))] * 3
    assert sum(f.size for f in files) < limits.body
    with pytest.raises(TooLargeError, match="unpack to 36864 bytes; at most 24576"):
        decode(encode_npz(files, ["a"] * 3), NPZ, limits)
    pictures, _ = decode(encode_npz(files[:2], ["a"] * 2), NPZ, limits)
    assert all(isinstance(p, Tensor) for p in pictures)


def test_formats_that_run_other_programs_are_not_opened() -> None:
    (found,), _ = decode(encode_npz([encoded("EPS", (4, 4))], ["a"]), NPZ, Limits())
    assert isinstance(found, Outcome)
    assert "no picture in a known format" in found.status


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    buffer, prompts = io.BytesIO(), np.frombuffer(b'["a"]', np.uint8)
    np.savez(buffer, **{"image.0": np.array([Trap(tmp_path / "run")], dtype=object)}, prompts=prompts)
    with pytest.raises(WireError, match="no npz of plain arrays"):
        decode(buffer.getvalue(), NPZ, Limits())
    assert not (tmp_path / "run").exists()


def test_a_taken_port_is_an_error_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"[Aa]ddress already in use.*{port}"):
            serve(Bright(), ServerOptions(port=port))
