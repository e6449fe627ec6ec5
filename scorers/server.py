"""Reward server: one scorer behind HTTP, with batching over requests. Loopback unless told otherwise.

``POST /score`` takes safetensors or npz (``scorers.wire``) and answers JSON with an outcome per picture;
``GET /about`` says which scorer it is; ``GET /health`` needs no token. The client is ``scorers.client``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scorers.address import is_loopback
from scorers.base import ScorerBase
from scorers.each import Outcome, failed, score_each
from scorers.protocol import Scorer
from scorers.wire import Limits, TooLargeError, WireError, decode

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "SCORERS_TOKEN"
"""Environment variable of the token, for server and client; on a command line everybody would see it."""


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How a scorer is served."""

    host: str = "127.0.0.1"
    port: int = 8711
    token: str | None = field(default_factory=lambda: os.environ.get(TOKEN_VARIABLE) or None, repr=False)
    """What clients must send as ``Authorization: Bearer``; None asks for none, on loopback only."""
    batch: int = 32
    """Pictures that go through the scorer at once."""
    window: float = 0.01
    """Seconds that a picture waits for others to fill its batch."""
    pending: int = 2048
    """Pictures that may wait; beyond that requests are answered 503 and the client comes again."""
    read_timeout: float = 60.0
    """Seconds in which a body must have arrived."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a number out of range, or a network address without token.
        """
        if self.batch < 1 or self.pending < 1 or self.window < 0 or self.read_timeout <= 0:
            raise ValueError(
                "batch and pending must be at least 1, window not negative and read_timeout positive"
            )
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines: set a token in {TOKEN_VARIABLE}, or serve "
                "on 127.0.0.1"
            )


def serve(scorer: Scorer, options: ServerOptions | None = None) -> None:
    """Serve until stopped.

    Raises:
        ModuleNotFoundError: the extra ``server`` is not installed.
        OSError: the address cannot be had, for example because another server has the port.
        ValueError: the scorer cannot be served.
    """
    options = options or ServerOptions()
    app = make_app(scorer, options)
    import uvicorn

    host, family = options.host.strip("[]"), socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Bound here, as uvicorn would end the process by a code of its own where the port is taken.
    with socket.create_server((host, options.port), family=family) as listening:
        config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=30)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def make_app(scorer: Scorer, options: ServerOptions | None = None) -> FastAPI:
    """The application, to be run by any ASGI server with one worker.

    Raises:
        ModuleNotFoundError: the extra ``server`` is not installed.
        ValueError: the scorer does not judge pictures one by one.
    """
    try:
        from fastapi import FastAPI
        from starlette.routing import BaseRoute, Route
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the reward server needs {error.name}: pip install diffalign[server]"
        ) from error
    if scorer.kind != "pointwise" or scorer.space != "pixel":
        raise ValueError(
            f"scorer {scorer.name} is {scorer.kind} in {scorer.space} space; it cannot be served"
        )
    service = Service(scorer, options or ServerOptions())

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with service.running():
            yield

    routes: list[BaseRoute] = [
        Route("/health", service.health, methods=["GET"]),
        Route("/about", service.about, methods=["GET"]),
        Route("/score", service.score, methods=["POST"]),
    ]
    return FastAPI(title=f"scorer {scorer.name}", routes=routes, lifespan=lifespan, openapi_url=None)


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        """``status`` is HTTP's; the reason goes to the client."""
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass(frozen=True, kw_only=True)
class Job:
    """A picture that waits for its score."""

    picture: Tensor
    prompt: str
    done: asyncio.Future[Outcome]


class Service:
    """The handlers, and the task that batches what they ask for."""

    def __init__(self, scorer: Scorer, options: ServerOptions) -> None:
        """See make_app."""
        self.scorer, self.options = scorer, options
        self.queue: asyncio.Queue[Job] = asyncio.Queue()
        self.pending = self.served = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Batch while inside."""
        with ThreadPoolExecutor(1, "scorer") as pool:
            task = asyncio.create_task(self._work(pool))
            try:
                yield
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def health(self, request: Any) -> Any:
        """Alive, and how much waits."""
        from starlette.responses import JSONResponse

        return JSONResponse({"status": "ok", "pending": self.pending, "served": self.served})

    async def about(self, request: Any) -> Any:
        """Which scorer this is, and what a request may hold."""
        return await self._answer(request, self._about)

    async def score(self, request: Any) -> Any:
        """Outcomes of a request, in its order."""
        return await self._answer(request, self._score)

    async def _answer(self, request: Any, handle: Callable[[Any], Any]) -> Any:
        from starlette.responses import JSONResponse

        try:
            self._authorise(request)
            return JSONResponse(await handle(request))
        except RefusedError as refused:
            headers = {503: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(refused.status)
            return JSONResponse({"error": refused.reason}, refused.status, headers)

    def _authorise(self, request: Any) -> None:
        if self.options.token is None:
            return
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {self.options.token}"
        if not hmac.compare_digest(given.encode(), wanted.encode()):
            raise RefusedError(401, f"a token is needed; set {TOKEN_VARIABLE} to the server's")

    async def _about(self, request: Any) -> dict[str, Any]:
        s, limits = self.scorer, self.options.limits
        return {
            "name": s.name, "version": s.version, "dims": list(s.dims),
            "range": [str(v) for v in s.range], "higher_better": s.higher_better, "needs": sorted(s.needs),
            "licence": s.licence, "citation": s.citation,
            "temperature": s.temperature if isinstance(s, ScorerBase) else 1.0,
            "meta": s.describe() if isinstance(s, ScorerBase) else {"scorer": s.name, "version": s.version},
            "max_items": limits.items, "max_body": limits.body,
        }  # fmt: skip

    async def _score(self, request: Any) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        body = await self._body(request)
        try:
            pictures, prompts = await asyncio.to_thread(decode, body, kind, self.options.limits)
        except TooLargeError as error:
            raise RefusedError(413, str(error)) from error
        except WireError as error:
            raise RefusedError(400, str(error)) from error
        if self.pending + len(pictures) > self.options.pending:
            raise RefusedError(503, f"{self.pending} pictures are waiting; come again")
        return {"outcomes": [o.row() for o in await self._outcomes(pictures, prompts)]}

    async def _body(self, request: Any) -> bytes:
        """Read the body; what is too large is read on a little and dropped, so that the answer arrives."""
        most = self.options.limits.body
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > 2 * most:
            raise RefusedError(413, f"the body has {stated} bytes; at most {most} are taken")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.options.read_timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > 2 * most:
                        break
                    parts.append(part if size <= most else b"")
        except TimeoutError as error:
            raise RefusedError(408, f"the body did not arrive in {self.options.read_timeout:g} s") from error
        if size > most:
            raise RefusedError(413, f"the body has {size} bytes or more; at most {most} are taken")
        return b"".join(parts)

    async def _outcomes(self, pictures: Sequence[Tensor | Outcome], prompts: Sequence[str]) -> list[Outcome]:
        loop = asyncio.get_running_loop()
        waits: list[asyncio.Future[Outcome]] = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            done: asyncio.Future[Outcome] = loop.create_future()
            waits.append(done)
            if isinstance(picture, Outcome):
                done.set_result(picture)
            else:
                self.queue.put_nowait(Job(picture=picture, prompt=prompt, done=done))
        self.pending += len(waits)
        try:
            return list(await asyncio.gather(*waits))
        finally:
            self.pending -= len(waits)

    async def _work(self, pool: ThreadPoolExecutor) -> None:
        """Score what waits, batch after batch."""
        loop = asyncio.get_running_loop()
        while True:
            jobs = [job for job in await self._gather() if not job.done.done()]
            outcomes = await loop.run_in_executor(pool, self._run, jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                if not job.done.done():
                    job.done.set_result(outcome)
            self.served += len(jobs)

    async def _gather(self) -> list[Job]:
        """The next batch: what is there, and what comes within the window."""
        jobs = [await self.queue.get()]
        loop = asyncio.get_running_loop()
        end = loop.time() + self.options.window
        while len(jobs) < self.options.batch:
            try:
                async with asyncio.timeout_at(end):
                    jobs.append(await self.queue.get())
            except TimeoutError:
                break
        return jobs

    def _run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Outcomes of a batch; after a fault every picture is tried alone, as they are of several clients."""
        chunk = self.options.batch
        try:
            return score_each(self.scorer, [j.picture for j in jobs], [j.prompt for j in jobs], chunk=chunk)
        except Exception as error:  # a fault of one batch must not end the service
            logger.exception("a batch of %d pictures failed", len(jobs))
            if len(jobs) == 1:
                return [failed(f"the server could not score it: {type(error).__name__}")]
        return [outcome for job in jobs for outcome in self._run([job])]
