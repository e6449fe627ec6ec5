"""Tensors on disk under content keys: safetensors shards, each with a JSON index, written once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from torch import Tensor

from diffalign.data.records import DataError

FORMAT = 1
OPEN_SHARDS = 64

logger = logging.getLogger(__name__)


class _Shard(Protocol):
    def get_tensor(self, name: str, /) -> Tensor: ...


class Store:
    """Maps a key (hex digest of everything the value depends on) to a few named tensors.

    A shard appears by one rename, its index after it: a crash loses at most what was not flushed, and several
    processes may write into one folder. A shard without index, or of another size than noted, does not count.

    Args:
        folder: where shards lie; made when the first one is written.
        shard_bytes: flush when so many bytes are waiting.
    """

    def __init__(self, folder: str | Path, *, shard_bytes: int = 2**27) -> None:
        """Read the indices in ``folder``."""
        self.folder = Path(folder)
        self.shard_bytes = shard_bytes
        self._places: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._waiting_bytes = 0
        self._open: OrderedDict[str, _Shard] = OrderedDict()
        for index in sorted(self.folder.glob("*.json")):
            self._read_index(index)

    def __contains__(self, key: str) -> bool:
        """Whether the key has a value, on disk or waiting to be flushed."""
        return key in self._places or key in self._waiting

    def __len__(self) -> int:
        """Number of keys."""
        return len(self._places) + len(self._waiting)

    def __iter__(self) -> Iterator[str]:
        """All keys."""
        return iter([*self._places, *self._waiting])

    def get(self, key: str) -> dict[str, Tensor]:
        """Tensors under ``key``, on the CPU; KeyError where there are none."""
        if key in self._waiting:
            return dict(self._waiting[key])
        shard, names = self._places[key]
        file = self._shard(shard)
        return {name: file.get_tensor(f"{key}.{name}") for name in names}

    def add(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors under ``key``; what is there already is kept."""
        if key in self:
            return
        # A clone: a row that is a view would keep its whole batch alive.
        self._waiting[key] = {
            name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()
        }
        self._waiting_bytes += sum(value.nbytes for value in self._waiting[key].values())
        if self._waiting_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as one shard."""
        from safetensors.torch import save_file

        if not self._waiting:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {key: tuple(value) for key, value in self._waiting.items()}
        shard = hashlib.sha256("".join(sorted(names)).encode()).hexdigest()[:32]
        flat = {f"{key}.{name}": value for key, row in self._waiting.items() for name, value in row.items()}
        data = self.folder / f"{shard}.safetensors"
        _replace(data, lambda path: save_file(flat, path))
        index = json.dumps({"format": FORMAT, "bytes": data.stat().st_size, "keys": names})
        _replace(data.with_suffix(".json"), lambda path: path.write_text(index, encoding="utf-8"))
        self._places.update({key: (shard, value) for key, value in names.items()})
        self._waiting, self._waiting_bytes = {}, 0

    def _read_index(self, index: Path) -> None:
        data = index.with_suffix(".safetensors")
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            sound = content["format"] == FORMAT and data.stat().st_size == content["bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            logger.warning("cache shard %s is incomplete or of another version and is not used", data)
            return
        self._places.update({key: (index.stem, tuple(names)) for key, names in content["keys"].items()})

    def _shard(self, shard: str) -> _Shard:
        """Open a shard (memory-mapped); the latest few stay open."""
        from safetensors import safe_open

        if shard not in self._open:
            path = self.folder / f"{shard}.safetensors"
            try:
                self._open[shard] = safe_open(path, framework="pt")
            except Exception as error:  # safetensors raises its own class, OSError or ValueError
                raise DataError(
                    f"cache shard {path} cannot be read ({error}); delete it, it will be made again"
                ) from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path`` and rename, so that ``path`` is whole or absent."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
