"""Reward server: one scorer behind HTTP, with batching over requests. Loopback unless told otherwise.

``POST /score`` takes safetensors or npz (``scorers.wire``) and answers JSON with an outcome per picture;
``GET /about`` says which scorer it is; ``GET /health`` needs no token. The client is ``scorers.client``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scorers.protocol import Scorer
from scorers.wire import Limits

if TYPE_CHECKING:
    from fastapi import FastAPI

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
    memory: int = 2 * 2**30
    """Bytes that the bodies and pictures of all requests together may take; beyond that, 503 as well."""
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
        if self.memory < self.limits.body:
            raise ValueError(
                f"memory is {self.memory} bytes, but one body may have {self.limits.body}: raise memory, or "
                "lower limits.body"
            )
        if not self.token and not is_loopback(self.host):
            raise ValueError(
                f"{self.host} can be reached from other machines: set a token in {TOKEN_VARIABLE}, or serve "
                "on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


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
    from scorers.service import Service

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
