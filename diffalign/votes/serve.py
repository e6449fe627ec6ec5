"""``gallery serve``: the gallery for several raters on one machine, whose votes are on disk at once.

``GET /`` is the page. ``POST /votes`` takes one vote as JSON and answers 201, or 200 where it was there
already, with how many votes its rater has; ``DELETE /votes`` takes that vote back, also before it came;
``GET /votes?rater=ID`` gives votes as JSON lines, of all raters
without ``rater``; ``GET /next?rater=ID`` the pair to show (of one aspect with ``&aspect=``), 204 when there
is none; ``GET /pictures/NAME`` a picture of a large gallery; ``GET /health`` needs no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from diffalign.votes.next_pair import ANY, Schedule
from diffalign.votes.pictures import Pictures, find_pictures, vote_key
from diffalign.votes.rows import Vote, VoteError, parse_vote
from diffalign.votes.store import VoteStore
from scorers.server import is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "GALLERY_TOKEN"
"""Environment variable of the token; on a command line everybody would see it."""
RATER = 100
"""Characters of a rater's name at most, as in a vote."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """How a gallery is served."""

    host: str = "127.0.0.1"
    port: int = 8712
    token: str | None = field(default_factory=lambda: os.environ.get(TOKEN_VARIABLE) or None, repr=False)
    """What browsers must send, as ``?token=`` or ``Authorization: Bearer``; None asks for none, on loopback
    only.
    """
    choose: str = "random"
    """How pairs are chosen, see ``choose.CHOOSERS``."""
    body: int = 64 * 1024
    """Bytes of a vote at most."""
    read_timeout: float = 30.0
    """Seconds in which a vote must have arrived."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a number out of range, or a network address without token.
        """
        if self.body < 1 or self.read_timeout <= 0:
            raise ValueError("body must be at least 1, and read_timeout positive")
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines: set a token in {TOKEN_VARIABLE}, or serve "
                "on 127.0.0.1"
            )


class RefusedError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, detail: str) -> None:
        """``status`` is HTTP's; the detail goes to the page."""
        super().__init__(detail)
        self.status, self.detail = status, detail


def serve(
    folders: Sequence[Path],
    votes: Path,
    options: ServeOptions | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve the gallery of folders of results until stopped.

    Args:
        folders: folders of results that share prompts and seeds.
        votes: SQLite file; votes that are in it already stay and count.
        options: address, token, limits.
        ready: called once the address is had.

    Raises:
        ModuleNotFoundError: the extra ``server`` is not installed.
        OSError: the address cannot be had, for example because another server has the port.
        VoteError: the file holds votes of another gallery, or is no file of votes; nothing to vote on.
    """
    from diffalign.gallery.write import page_of

    options = options or ServeOptions()
    page, gallery = page_of(folders)
    store = VoteStore(votes)
    try:
        service = Service(page, gallery, find_pictures(folders), store, options)
        run(make_app(service), options, ready)
    finally:
        store.close()


def run(app: FastAPI, options: ServeOptions, ready: Callable[[], None] = lambda: None) -> None:
    """Run the application until stopped; errors as for ``serve``."""
    import uvicorn

    host, family = options.host.strip("[]"), socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # Bound here, as uvicorn would end the process by a code of its own where the port is taken.
    with socket.create_server((host, options.port), family=family) as listening:
        ready()
        config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=30)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def make_app(service: Service) -> FastAPI:
    """The application, to be run by any ASGI server with one worker.

    Raises:
        ModuleNotFoundError: the extra ``server`` is not installed.
    """
    try:
        from fastapi import FastAPI
        from starlette.routing import BaseRoute, Route
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"gallery serve needs {error.name}: pip install diffalign[server]"
        ) from error
    routes: list[BaseRoute] = [
        Route("/", service.page, methods=["GET"]),
        Route("/pictures/{name}", service.picture, methods=["GET"]),
        Route("/health", service.health, methods=["GET"]),
        Route("/votes", service.add, methods=["POST"]),
        Route("/votes", service.withdraw, methods=["DELETE"]),
        Route("/votes", service.votes, methods=["GET"]),
        Route("/next", service.next, methods=["GET"]),
    ]
    return FastAPI(title="diffalign gallery", routes=routes, openapi_url=None)


class Service:
    """The handlers."""

    def __init__(
        self, page: str, gallery: str, pictures: Pictures, store: VoteStore, options: ServeOptions
    ) -> None:
        """``page`` is the HTML, ``gallery`` its hash.

        Raises:
            VoteError: the store holds votes of another gallery, or there is nothing to vote on.
        """
        self.html, self.gallery, self.pictures = page.encode(), gallery, pictures
        self.store, self.options = store, options
        self.prompts = {row.prompt_id: row.prompt for row in pictures.rows}
        self.files = {f"{sha}{file.suffix.lower()}": file for (_, sha), file in pictures.files.items()}
        self.schedule = Schedule(pictures.rows, options.choose)
        for vote in store.votes():
            if vote.gallery != gallery:
                raise VoteError(
                    f"{store.path} holds votes of another gallery ({vote.gallery[:12]}): name another file "
                    "of votes, or serve the folders that they are of"
                )
            self.schedule.record(vote)

    async def page(self, request: Any) -> Any:
        """The gallery."""
        from starlette.responses import Response

        async def answer() -> Any:
            # A page must not be shown inside another one, nor its address (with the token) be passed on.
            headers = {
                "X-Frame-Options": "DENY",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-store",
            }
            return Response(self.html, headers=headers, media_type="text/html; charset=utf-8")

        return await self._answer(request, answer)

    async def picture(self, request: Any) -> Any:
        """One picture of a gallery that is too large to hold them itself; its name is its hash."""
        from starlette.responses import FileResponse

        async def answer() -> Any:
            file = self.files.get(request.path_params["name"])
            if file is None or not file.is_file():
                raise RefusedError(404, "this gallery has no such picture")
            return FileResponse(file, headers={"Cache-Control": "private, max-age=31536000, immutable"})

        return await self._answer(request, answer)

    async def health(self, request: Any) -> Any:
        """Alive."""
        from starlette.responses import JSONResponse

        return JSONResponse({"status": "ok", "gallery": self.gallery})

    async def add(self, request: Any) -> Any:
        """Store one vote."""
        from starlette.responses import JSONResponse

        async def answer() -> Any:
            vote, row = self.checked(await self._body(request))
            new, count = await asyncio.to_thread(self.store.add, vote, row)
            if new:
                self.schedule.record(vote)
            return JSONResponse({"count": count}, 201 if new else 200)

        return await self._answer(request, answer)

    async def withdraw(self, request: Any) -> Any:
        """Take one vote back."""
        from starlette.responses import JSONResponse

        async def answer() -> Any:
            vote, _ = self.checked(await self._body(request))
            counted, count = await asyncio.to_thread(self.store.withdraw, vote)
            if counted:
                self.schedule.forget(vote)
            return JSONResponse({"count": count})

        return await self._answer(request, answer)

    async def votes(self, request: Any) -> Any:
        """Votes as JSON lines."""
        from starlette.responses import Response

        async def answer() -> Any:
            rater = request.query_params.get("rater")
            rows = await asyncio.to_thread(self.store.rows, rater)
            return Response("".join(f"{row}\n" for row in rows), media_type="application/jsonl")

        return await self._answer(request, answer)

    async def next(self, request: Any) -> Any:
        """The pair to show."""
        from starlette.responses import JSONResponse, Response

        async def answer() -> Any:
            rater = request.query_params.get("rater", "")
            if not 0 < len(rater) <= RATER:
                raise RefusedError(422, f"name the rater, /next?rater=ID, in at most {RATER} characters")
            aspect = request.query_params.get("aspect", ANY)
            pair = await asyncio.to_thread(self.schedule.next, rater, aspect)
            if pair is None:
                return Response(status_code=204)
            shown = {"prompt_id": pair.prompt_id, "seed": pair.seed, "a": pair.a.model, "b": pair.b.model}
            return JSONResponse(shown)

        return await self._answer(request, answer)

    def checked(self, body: bytes) -> tuple[Vote, str]:
        """A vote on this gallery, and its JSON in one line.

        Raises:
            RefusedError: it is none; says why.
        """
        try:
            vote, row = parse_vote(body, "vote"), json.dumps(json.loads(body))
        except (VoteError, ValueError) as error:
            raise RefusedError(422, str(error)) from error
        if vote.gallery != self.gallery:
            raise RefusedError(409, "a vote of another gallery: reload the page")
        for side in (vote.a, vote.b):
            if self.pictures.latest.get(vote_key(vote, side)) != side.sha256:
                raise RefusedError(
                    422, f"{side.model!r} has no such picture of prompt {vote.prompt_id}, seed {vote.seed}"
                )
        if self.prompts[vote.prompt_id] != vote.prompt:
            raise RefusedError(422, f"prompt {vote.prompt_id} reads differently in this gallery")
        if (vote.a == vote.b) != (vote.anchor is not None):
            raise RefusedError(422, "a and b must be two pictures, or of an anchor the same one")
        return vote, row

    async def _answer(self, request: Any, handle: Callable[[], Awaitable[Any]]) -> Any:
        from starlette.responses import JSONResponse

        try:
            self._authorise(request)
            return await handle()
        except RefusedError as refused:
            headers = {"WWW-Authenticate": "Bearer"} if refused.status == 401 else None
            return JSONResponse({"detail": refused.detail}, refused.status, headers)

    def _authorise(self, request: Any) -> None:
        self._refuse_strangers(request)
        if self.options.token is None:
            return
        given = request.query_params.get("token") or request.headers.get("authorization", "")
        if not hmac.compare_digest(given.removeprefix("Bearer ").encode(), self.options.token.encode()):
            raise RefusedError(
                401, f"a token is needed: open /?token=..., with the server's {TOKEN_VARIABLE}"
            )

    def _refuse_strangers(self, request: Any) -> None:
        """Keep other web pages in the same browser from voting, and from reading by a name of their own."""
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(403, f"{origin} is another page than this gallery")
        if self.options.token is None and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            raise RefusedError(403, f"open the gallery by a loopback address, not as {host!r}")

    async def _body(self, request: Any) -> bytes:
        """The body of a request; what is too large is read on a little, so that the answer arrives.

        Raises:
            RefusedError: it is of another type, too large, or does not arrive.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(415, f"a vote is sent as application/json, not {kind!r}")
        most, parts, size = self.options.body, [], 0
        try:
            async with asyncio.timeout(self.options.read_timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > 16 * most:
                        break
                    parts.append(part if size <= most else b"")
        except TimeoutError as error:
            raise RefusedError(408, f"the vote did not arrive in {self.options.read_timeout:g} s") from error
        if size > most:
            raise RefusedError(413, f"the vote has {size} bytes or more; at most {most} are taken")
        return b"".join(parts)
