"""The handlers of the reward server, and the task that batches what many requests ask for."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scorers.base import ScorerBase
from scorers.digests import weights_digest
from scorers.each import FAULT, Outcome, score_each
from scorers.protocol import Scorer
from scorers.server import TOKEN_VARIABLE, ServerOptions
from scorers.wire import TooLargeError, WireError, decode

logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, reason: str) -> None:
        """``status`` is HTTP's; the reason goes to the client."""
        super().__init__(reason)
        self.status, self.reason = status, reason


class Memory:
    """Counts the bytes that requests hold at once."""

    def __init__(self, most: int) -> None:
        """``most`` is the limit for all of them together."""
        self.most, self.held = most, 0

    @contextlib.contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """A function that takes bytes for one request, which are given back at the end.

        The function raises RefusedError where there is no room.
        """
        mine = 0

        def take(size: int) -> None:
            nonlocal mine
            if mine + size > self.most:
                raise RefusedError(413, f"the request alone takes {mine + size} bytes; send fewer pictures")
            if self.held + size > self.most:
                raise RefusedError(503, f"{self.held} bytes of requests are being worked on; come again")
            self.held, mine = self.held + size, mine + size

        try:
            yield take
        finally:
            self.held -= mine


def _refused(take: Callable[[int], None], size: int) -> RefusedError | None:
    """Take bytes, or say why not."""
    try:
        take(size)
    except RefusedError as error:
        return error
    return None


def identity(scorer: Scorer) -> str:
    """Digest of what is served: name, version, options, and every weight."""
    about = scorer.describe() if isinstance(scorer, ScorerBase) else {}
    parts = [scorer.name, scorer.version, sorted(about.items()), weights_digest(scorer)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
        self.id, self.memory = identity(scorer), Memory(options.memory)
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
        """Alive, how much waits, and which scorer it is."""
        from starlette.responses import JSONResponse

        return JSONResponse(
            {
                "status": "ok", "pending": self.pending, "served": self.served, "held": self.memory.held,
                "id": self.id,
            }
        )  # fmt: skip

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
            "id": self.id, "max_items": limits.items, "max_body": limits.body,
        }  # fmt: skip

    async def _score(self, request: Any) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        with self.memory.hold() as take:
            body = await self._body(request, take)
            try:
                pictures, prompts = await asyncio.to_thread(decode, body, kind, self.options.limits)
            except TooLargeError as error:
                raise RefusedError(413, str(error)) from error
            except WireError as error:
                raise RefusedError(400, str(error)) from error
            take(sum(p.nbytes for p in pictures if isinstance(p, Tensor)))
            if self.pending + len(pictures) > self.options.pending:
                raise RefusedError(503, f"{self.pending} pictures are waiting; come again")
            return {"id": self.id, "outcomes": [o.row() for o in await self._outcomes(pictures, prompts)]}

    async def _body(self, request: Any, take: Callable[[int], None]) -> bytes:
        """Read the body; what there is no room for is read on and dropped, so that the answer arrives."""
        from starlette.requests import ClientDisconnect

        most = self.options.limits.body
        stated = request.headers.get("content-length", "0")
        if stated.isdecimal() and int(stated) > 2 * most:
            raise RefusedError(413, f"the body has {stated} bytes; at most {most} are taken")
        parts, size, refused = [], 0, None
        try:
            async with asyncio.timeout(self.options.read_timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > 2 * most:
                        break
                    if size <= most and refused is None:
                        refused = _refused(take, len(part))
                        parts.append(part)
        except ClientDisconnect as error:
            raise RefusedError(400, "the client went away before its body was whole") from error
        except TimeoutError as error:
            raise RefusedError(408, f"the body did not arrive in {self.options.read_timeout:g} s") from error
        if refused is not None:
            raise refused
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
                return [Outcome(score=None, status=f"{FAULT}: {type(error).__name__}")]
        return [outcome for job in jobs for outcome in self._run([job])]
