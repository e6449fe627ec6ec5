"""One HTTP exchange with a reward server: a connection soon or not at all, an answer in its own time."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from scorers.server import is_loopback
from scorers.wire import SAFETENSORS

AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which a request is sent once more."""
CONTENT = frozenset({400, 413})
"""Answers that blame what was sent, so that the same request would be refused again."""

Ask = Callable[[str, bytes | None, float], dict[str, Any]]
"""JSON answer of a path, to a body, when each read takes so many seconds at most."""


class RemoteError(ConnectionError):
    """The server did not answer in time, or refused."""


class ContentError(RemoteError):
    """The server refused what these pictures and prompts are."""


class AgainError(Exception):
    """A fault that may be over soon."""


def exchange(url: str, token: str | None, connect: float) -> Ask:
    """Exchanges with a server as a function.

    Args:
        url: ``http://host:port`` or ``https://...``.
        token: what the server asks for.
        connect: seconds in which the connection must stand.

    Raises:
        ValueError: not such a URL, or a token that would travel unencrypted to another machine.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is no address of a reward server; write http://host:port")
    near = is_loopback(parts.hostname)
    if token and parts.scheme == "http" and not near:
        raise ValueError(f"{url}: a token must not travel unencrypted; use https, or a tunnel to 127.0.0.1")
    handlers: list[Any] = [_NoRedirect, _Http(connect), _Https(connect)]
    if near:
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy would look for its own loopback
    opener = urllib.request.build_opener(*handlers)
    headers = {"Content-Type": SAFETENSORS} | ({"Authorization": f"Bearer {token}"} if token else {})

    def ask(path: str, body: bytes | None, timeout: float) -> dict[str, Any]:
        request = urllib.request.Request(url + path, data=body, headers=headers)
        try:
            with opener.open(request, timeout=timeout) as answer:
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            raise _refusal(url + path, error) from error
        except (OSError, HTTPException, ValueError) as error:  # refused, reset, timed out, cut off
            raise AgainError(str(error) or type(error).__name__) from error

    return ask


def _refusal(where: str, error: urllib.error.HTTPError) -> Exception:
    reason = f"HTTP {error.code}: {_reason(error)}"
    if error.code in AGAIN:
        return AgainError(reason)
    kind = ContentError if error.code in CONTENT else RemoteError
    return kind(f"{where} refused: {reason}")


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read(10_000))["error"])
    except (ValueError, KeyError, TypeError, OSError, HTTPException):
        return str(error.reason)


class _Connection(HTTPConnection):
    """Connects within a time of its own; only then the time-out of reading counts."""

    def __init__(self, host: str, *, within: float, timeout: float) -> None:
        """``timeout`` is that of reading."""
        super().__init__(host, timeout=timeout)
        self.within = within

    def connect(self) -> None:
        """See the class."""
        _connect(self, self.within, super().connect)


class _SafeConnection(HTTPSConnection):
    """The same, encrypted; the handshake counts as connecting."""

    def __init__(self, host: str, *, within: float, timeout: float, context: ssl.SSLContext) -> None:
        """``timeout`` is that of reading."""
        super().__init__(host, timeout=timeout, context=context)
        self.within = within

    def connect(self) -> None:
        """See the class."""
        _connect(self, self.within, super().connect)


def _connect(connection: HTTPConnection, within: float, connect: Callable[[], None]) -> None:
    reading = connection.timeout
    connection.timeout = min(within, reading or within)
    try:
        connect()
    except TimeoutError:
        raise TimeoutError(f"no connection in {connection.timeout:.2g} s") from None
    connection.sock.settimeout(reading)


class _Http(urllib.request.HTTPHandler):
    """Opens connections that stand within ``within`` seconds."""

    def __init__(self, within: float) -> None:
        """See the class."""
        super().__init__()
        self.within = within

    def http_open(self, req: urllib.request.Request) -> Any:
        """See urllib."""
        return self.do_open(partial(_Connection, within=self.within), req)


class _Https(urllib.request.HTTPSHandler):
    """The same, encrypted."""

    def __init__(self, within: float) -> None:
        """See the class."""
        self.trust = ssl.create_default_context()
        super().__init__(context=self.trust)
        self.within = within

    def https_open(self, req: urllib.request.Request) -> Any:
        """See urllib."""
        make = partial(_SafeConnection, within=self.within, context=self.trust)
        return self.do_open(make, req)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send pictures and token somewhere else."""

    def redirect_request(self, *arguments: Any) -> None:
        """Follow none."""
