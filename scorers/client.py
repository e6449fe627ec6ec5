"""A scorer that runs elsewhere: ``scorers.load("http://127.0.0.1:8711")`` asks a reward server."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorers.base import ScorerBase, check_batch
from scorers.each import Outcome, failed, lost
from scorers.exchange import AgainError, ContentError, RemoteError, exchange
from scorers.protocol import Details
from scorers.server import TOKEN_VARIABLE
from scorers.wire import encode

__all__ = ["ClientOptions", "RemoteError", "RemoteScorer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """How a server is asked."""

    connect: float = 5.0
    """Seconds in which a connection must stand."""
    start: float = 5.0
    """Seconds in which the server must first answer; more waits for one that is being started."""
    timeout: float = 60.0
    """Seconds in which an answer must come, once the connection stands."""
    patience: float = 120.0
    """Seconds in which a request is tried again before its pictures count as lost. A server that is gone
    holds up a call for about so long (or ``connect + timeout``, if that is longer), however many pictures."""
    backoff: float = 0.2
    """Seconds before the second try; each further wait is twice as long, up to 10 s, and jittered."""
    chunk: int = 16
    """Pictures of one request."""
    workers: int = 4
    """Requests at once."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a number that is not positive.
        """
        for name, value in asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")


class RemoteScorer(ScorerBase):
    """The scorer behind a URL. Calls give a status per picture; ``score_tensor`` raises where one failed.

    Args:
        url: ``http://host:port`` or ``https://...``.
        token: what the server asks for; None takes ``$SCORERS_TOKEN``.
        options: see ClientOptions.

    Raises:
        ValueError: not such a URL, or a token that would travel unencrypted to another machine.
        RemoteError: the server does not answer, or refuses the token.
    """

    differentiable = False
    licence = ""
    citation = ""

    def __init__(self, url: str, token: str | None = None, options: ClientOptions | None = None) -> None:
        """See the class."""
        super().__init__()
        self.url, self.options = url.rstrip("/"), options or ClientOptions()
        self.token = token if token is not None else os.environ.get(TOKEN_VARIABLE) or None
        self._ask = exchange(self.url, self.token, self.options.connect)
        about = self._retrying("/about", None, min(self.options.start, self.options.patience))
        self.name, self.version = self.url, f"{about['name']} {about['version']}"
        self.dims, self.higher_better = tuple(about["dims"]), bool(about["higher_better"])
        self.range = (float(about["range"][0]), float(about["range"][1]))
        self.needs = frozenset(about["needs"])
        self.licence, self.citation = about["licence"], about["citation"]
        self.temperature = float(about["temperature"])
        self.meta = {str(k): str(v) for k, v in about["meta"].items()}
        self.id = str(about["id"])
        self.max_items, self.max_body = int(about["max_items"]), int(about["max_body"])
        self.eval()

    @classmethod
    def load(
        cls, weights: Path | None, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> RemoteScorer:
        """Refuse: a URL is needed, see the class.

        Raises:
            ValueError: always.
        """
        raise ValueError("a remote scorer is loaded by its address: scorers.load('http://127.0.0.1:8711')")

    def describe(self) -> dict[str, str]:
        """The server's own record, and its address."""
        return {**self.meta, "server": self.url, "server_id": self.id}

    @property
    def identity(self) -> str:
        """Digest of the scorer that is served: name, version, options and weights."""
        return self.id

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32 scores of (B, 3, H, W) pictures in [0, 1]; no gradient.

        Raises:
            RemoteError: a picture could not be scored; the message says why.
            ValueError: wrong shapes, or not one prompt per picture.
        """
        check_batch(x01, prompts)
        outcomes = self.outcomes(list(x01), prompts)
        bad = [(i, o.status) for i, o in enumerate(outcomes) if not o.ok]
        if bad:
            raise RemoteError(
                f"{self.url}: {len(bad)} of {len(outcomes)} pictures failed; {bad[0][0]}: {bad[0][1]}"
            )
        return torch.tensor([o.score for o in outcomes], device=x01.device, dtype=torch.float32)

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        """Scores with a status each; NaN where there is none."""
        outcomes = self.outcomes(list(x01), prompts)
        names = next((list(o.dims) for o in outcomes if o.ok), [])
        return Details(
            score=_column([o.score for o in outcomes]),
            dims={name: _column([o.dims.get(name) for o in outcomes]) for name in names},
            raw=_optional([o.raw for o in outcomes]),
            std=_optional([o.std for o in outcomes]),
            status=[o.status for o in outcomes],
        )

    def outcomes(self, pictures: Sequence[Tensor], prompts: Sequence[str]) -> list[Outcome]:
        """What became of each of N (3, H, W) pictures in [0, 1]; nothing is raised for a single one."""
        parts, gone = list(self._parts(pictures, prompts)), threading.Event()
        with ThreadPoolExecutor(self.options.workers, "remote-scorer") as pool:
            found = list(pool.map(lambda part: self._request(part[0], part[1], gone), parts))
        return [outcome for part in found for outcome in part]

    def _parts(
        self, pictures: Sequence[Tensor], prompts: Sequence[str]
    ) -> Iterator[tuple[Sequence[Tensor], Sequence[str]]]:
        """Requests within the server's limits."""
        most, start, size = min(self.options.chunk, self.max_items), 0, 0
        for i, picture in enumerate(pictures):
            grown = size + 4 * picture.numel() + 6 * len(prompts[i]) + 256
            if i > start and (i - start == most or grown > self.max_body):
                yield pictures[start:i], prompts[start:i]
                start, grown = i, grown - size
            size = grown
        if len(pictures) > start:
            yield pictures[start:], prompts[start:]

    def _request(
        self, pictures: Sequence[Tensor], prompts: Sequence[str], gone: threading.Event
    ) -> list[Outcome]:
        """Outcomes of one request; after one that was lost, the others of the call are not waited for."""
        if gone.is_set():
            return [lost(f"{self.url} gave no answer to pictures before")] * len(pictures)
        try:
            answer = self._retrying("/score", encode(pictures, prompts), self.options.patience)
            found = [Outcome(**row) for row in answer["outcomes"]]
            if answer["id"] != self.id:
                raise RemoteError(f"{self.url} has another scorer or other weights than before; load it anew")
        except (ContentError, KeyError, TypeError) as error:
            return [failed(error)] * len(pictures)
        except RemoteError as error:
            gone.set()
            return [lost(error)] * len(pictures)
        if len(found) != len(pictures):
            return [failed(f"{self.url} answered {len(found)} scores for {len(pictures)}")] * len(pictures)
        return found

    def _retrying(self, path: str, body: bytes | None, patience: float) -> dict[str, Any]:
        """The JSON answer; connection faults and busy servers are tried again until patience ends."""
        end, wait, timeout = time.monotonic() + patience, self.options.backoff, self.options.timeout
        while True:
            try:
                return self._ask(path, body, timeout)
            except AgainError as error:
                left = end - time.monotonic()
                if left <= 0:
                    raise RemoteError(
                        f"{self.url}{path} gave no answer in {patience:g} s ({error}); is the server running?"
                    ) from error
                logger.info("%s: %s; trying again for %.0f s", self.url, error, left)
                time.sleep(min(left, wait * random.uniform(0.5, 1.5)))
                wait, timeout = min(10.0, 2 * wait), min(timeout, max(self.options.backoff, left))


def _column(values: Sequence[float | None]) -> Tensor:
    return torch.tensor([float("nan") if v is None else v for v in values], dtype=torch.float32)


def _optional(values: Sequence[float | None]) -> Tensor | None:
    return None if all(v is None for v in values) else _column(values)
