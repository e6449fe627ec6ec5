"""Reward server and client on loopback: nothing is lost, bad requests are refused, the server lives."""

from __future__ import annotations

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

from scorers.address import is_loopback
from scorers.base import ScorerBase
from scorers.client import ClientOptions, RemoteError, RemoteScorer
from scorers.each import Outcome, score_each
from scorers.protocol import Details
from scorers.server import ServerOptions, make_app, serve
from scorers.wire import NPZ, SAFETENSORS, Limits, TooLargeError, decode, encode, encode_npz

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


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with the token ``t``."""
    port = free_port()
    options = ServerOptions(port=port, token="t", limits=LIMITS)
    config = uvicorn.Config(make_app(Bright(), options), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


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
    with urllib.request.urlopen(url + "/health", timeout=10) as answer:
        assert json.loads(answer.read())["status"] == "ok"
    with pytest.raises(RemoteError, match=r"401.*SCORERS_TOKEN"):
        RemoteScorer(url, "wrong")


def test_a_silent_server_is_a_clear_error() -> None:
    options = ClientOptions(patience=0.3, backoff=0.05, timeout=0.2)
    with pytest.raises(RemoteError, match=r"no answer in 0\.3 s.*is the server running"):
        RemoteScorer(f"http://127.0.0.1:{free_port()}", options=options)


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
            f"http://127.0.0.1:{port}", options=ClientOptions(chunk=2, workers=2, backoff=0.05)
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


def test_a_taken_port_is_an_error_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"[Aa]ddress already in use.*{port}"):
            serve(Bright(), ServerOptions(port=port))
