"""Reference errors that are kept: a second run on the same data skips the pass of the reference.

Every draw of training is seeded by (run seed, epoch, unit), so that the reference of a run with another beta,
learning rate or objective meets the very same noisy latents. Its errors are kept under all that they hang on,
and under nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffalign.device import send
from diffalign.policy import Policy
from diffalign.train.checkpoint import CheckpointError

FORMAT = 1
DIGEST = 16
"""Bytes of a row's key: with ten million rows two alike have a chance of 1e-25."""
UNTOLD = ("_name_or_path", "_diffusers_version", "_use_default_values", "_class_name")
"""Entries of a diffusers configuration that change nothing of what is computed."""


class ErrorCacheError(CheckpointError):
    """Kept errors cannot be written or used."""


def error_context(policy: Policy, settings: Mapping[str, Any]) -> str:
    """sha256 of all that a run's reference errors hang on, apart from the rows themselves.

    Weights and configuration of the reference, its noise process, the VAE with its scale, the text encoders,
    arithmetic, device and libraries are found here; ``settings`` adds what only the recipe knows.

    Args:
        policy: after ``set_reference`` and ``to``.
        settings: plain values: corruptor, timesteps, space, how latents are drawn (sample or mode).

    Raises:
        ErrorCacheError: there is no reference that stands still, so its errors cannot be kept.
    """
    if policy.opponent.kind == "none" or policy.opponent.moves:
        raise ErrorCacheError(
            f"errors of reference {policy.opponent.kind!r} cannot be kept, for it does not stand still: take "
            "policy.reference off, start or lora, or keep no errors"
        )
    process, vae = policy.process, policy.pipeline.vae
    alphas = None if process.alphas_cumprod is None else process.alphas_cumprod.double().tolist()
    parts = {
        "format": FORMAT,
        "reference": policy.reference_id(),
        "network": _told(policy.denoiser.config),
        "process": [process.prediction, alphas],
        "encoders": [policy.encoder_id("vae"), policy.encoder_id("text"), _told(vae.config)],
        "arithmetic": [str(policy.dtype), *_machine(policy.device)],
        "settings": dict(settings),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _told(config: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(config).items() if k not in UNTOLD}


def _machine(device: torch.device) -> list[str]:
    """What rounds and draws differently: the device with its generator, matrix products, libraries."""
    import diffusers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    exact = [torch.get_float32_matmul_precision(), str(torch.backends.cudnn.allow_tf32)]
    return [name, *exact, torch.__version__, diffusers.__version__]


@dataclass(kw_only=True)
class _Late:
    """Errors on their way to the host."""

    keys: list[bytes]
    values: Tensor
    event: torch.cuda.Event | None


class ErrorCache:
    """Reference errors of one context, one number per row, in a folder that runs and processes share.

    A shard appears by one rename: a crash loses what was not flushed, and nothing that is half written is
    ever read. What other processes write while this one runs is not seen.

    Args:
        folder: where contexts have their folders.
        context: digest by ``error_context``.
        dtype: of the errors; part of the run's arithmetic, so the same in all shards.
        shard_rows: a shard is written when so many rows are waiting.
    """

    def __init__(
        self,
        folder: str | Path,
        context: str,
        *,
        dtype: torch.dtype = torch.float32,
        shard_rows: int = 2**16,
    ) -> None:
        """Read all shards of the context.

        Raises:
            ErrorCacheError: a shard is damaged or of another kind.
        """
        self.folder, self.dtype, self.shard_rows = Path(folder) / context[:32], dtype, shard_rows
        self.hits = self.misses = 0
        self._keys, self._values = self._read()
        self._fresh: dict[bytes, float] = {}
        self._unwritten: dict[bytes, float] = {}
        self._late: list[_Late] = []

    def __len__(self) -> int:
        """Number of rows that can be found."""
        return len(self._keys) + len(self._fresh)

    # ------------------------------------------------------------------ per batch

    @staticmethod
    def keys(contents: Sequence[str], units: Sequence[int], what: str = "native") -> list[bytes]:
        """One key per row of a batch.

        The number of rows counts too: kernels round by it, and a reference that was computed in a batch of
        another size would no longer equal the policy exactly where their weights are equal.

        Args:
            contents: per row, the key of its cached latents and that of its prompt after dropout, in one.
            units: per row, the seed of its comparison unit (of run seed, epoch and sample).
            what: which error of the row: the space, or the caption that it is taken under.
        """
        seen: dict[int, int] = {}
        found = []
        for content, unit in zip(contents, units, strict=True):
            side = seen[unit] = seen.get(unit, -1) + 1
            text = json.dumps([content, unit, side, len(units), what])
            found.append(hashlib.blake2b(text.encode(), digest_size=DIGEST).digest())
        return found

    def errors(
        self, keys: Sequence[bytes], device: torch.device | str, compute: Callable[[], Tensor]
    ) -> Tensor:
        """(N,) errors of a batch: the kept ones, else those of ``compute``, which are kept from now on."""
        found = self.lookup(keys, device)
        if found is None:
            found = compute()
            self.add(keys, found)
        return found

    def lookup(self, keys: Sequence[bytes], device: torch.device | str = "cpu") -> Tensor | None:
        """(N,) errors of a batch on the device, or None where any row is missing.

        Nothing waits for the device: what is asked for lies on the host already. Errors that were added and
        are still on their way there count as missing, and so does a batch of which a shard holds one part and
        this run's additions the other.
        """
        values = self._from_shards(keys)
        if values is None and all(key in self._fresh for key in keys):
            values = torch.tensor([self._fresh[key] for key in keys], dtype=self.dtype)
        self.misses += values is None
        self.hits += values is not None
        return None if values is None else send(values, device)

    def add(self, keys: Sequence[bytes], errors: Tensor) -> None:
        """Keep the (N,) errors of a batch.

        On a GPU they are copied to the host behind the step's back and taken up once they are there. The host
        waits only where a shard is written, every ``shard_rows`` rows, and that for copies long done.

        Raises:
            ErrorCacheError: the errors are of another dtype than the cache's.
        """
        if errors.dtype != self.dtype or errors.shape != (len(keys),):
            raise ErrorCacheError(
                f"errors of {errors.dtype} and shape {tuple(errors.shape)} for {len(keys)} rows do not fit a "
                f"cache of {self.dtype}: make the cache with the dtype of this run's errors"
            )
        values, event = errors.detach(), None
        if values.is_cuda:
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            values, event = host, torch.cuda.Event()
            event.record()
        else:
            values = values.cpu().clone()
        self._late.append(_Late(keys=list(keys), values=values, event=event))
        self._take_up()
        if len(self._unwritten) >= self.shard_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one shard: with each checkpoint and at the end of a run.

        Raises:
            ErrorCacheError: the disk is full or not writable.
        """
        for late in self._late:
            if late.event is not None:
                late.event.synchronize()
        self._take_up()
        if not self._unwritten:
            return
        keys = np.frombuffer(b"".join(self._unwritten), dtype=np.uint8).reshape(-1, DIGEST).copy()
        values = torch.tensor(list(self._unwritten.values()), dtype=self.dtype)
        try:
            self._write({"keys": torch.from_numpy(keys), "errors": values})
        except Exception as error:  # safetensors raises its own error type when the disk is full
            raise ErrorCacheError(
                f"reference errors could not be written to {self.folder} ({error})"
            ) from error
        self._unwritten = {}

    # ------------------------------------------------------------------ small parts

    def _take_up(self) -> None:
        """Take over what has reached the host, in order, without waiting."""
        while self._late and (self._late[0].event is None or self._late[0].event.query()):
            late = self._late.pop(0)
            rows = dict(zip(late.keys, late.values.tolist(), strict=True))
            if not all(np.isfinite(list(rows.values()))):
                continue  # the monitor stops the run for them; they are no errors to keep
            self._fresh |= rows
            self._unwritten |= rows

    def _from_shards(self, keys: Sequence[bytes]) -> Tensor | None:
        """(N,) errors of rows that were all there when the run began."""
        if not len(self._keys):
            return None
        asked = np.array(keys, dtype=f"S{DIGEST}")
        places = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
        if not (self._keys[places] == asked).all():
            return None
        return torch.from_numpy(self._values[places])

    def _read(self) -> tuple[Any, Any]:
        """Sorted keys, and their errors, of all shards."""
        shards = [self._load(path) for path in sorted(self.folder.glob("*.safetensors"))]
        if not shards:
            return np.empty(0, dtype=f"S{DIGEST}"), np.empty(0, dtype=np.float32)
        keys = np.concatenate([s["keys"].numpy() for s in shards]).view(f"S{DIGEST}").ravel()
        order = np.argsort(keys, kind="stable")
        return keys[order], torch.cat([s["errors"] for s in shards]).numpy()[order]

    def _load(self, path: Path) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        try:
            shard = load_file(path)
            sound = shard["keys"].shape == (*shard["errors"].shape, DIGEST) and shard["errors"].ndim == 1
        except Exception as error:  # safetensors raises its own class
            raise ErrorCacheError(
                f"{path} cannot be read ({error}): delete it, it will be made again"
            ) from error
        if not sound or shard["errors"].dtype != self.dtype or shard["keys"].dtype != torch.uint8:
            raise ErrorCacheError(f"{path} holds no errors of {self.dtype}: delete it, it will be made again")
        return shard

    def _write(self, shard: dict[str, Tensor]) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(shard["keys"].numpy().tobytes()).hexdigest()[:32]
        partial = self.folder / f".{name}.{secrets.token_hex(8)}.partial"
        try:
            save_file(shard, partial)
            os.replace(partial, self.folder / f"{name}.safetensors")
        finally:
            with suppress(FileNotFoundError):
                partial.unlink()
