"""Weights of places at latent size, made when the latents are there and stored beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffalign.data.keys import content_key
from diffalign.data.records import DataError, Record
from diffalign.data.region import Region, RegionError
from diffalign.data.store import Store
from diffalign.data.transform import map_to_latent

if TYPE_CHECKING:
    from diffalign.data.cache import Unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wanted:
    """One map that is to be made."""

    region: Region
    latent: str
    flip: bool
    where: str


class RegionMaps:
    """Collects the regions of a data set and stores their (1, h, w) maps beside the latents."""

    def __init__(self) -> None:
        """Nothing is wanted yet."""
        self._wanted: dict[str, _Wanted] = {}

    def keys(
        self, record: Record, images: Sequence[int], latents: Sequence[Sequence[str]], flips: Sequence[bool]
    ) -> tuple[tuple[str, ...], ...] | None:
        """Keys [view][image] of some images of a record, "" for a whole image; None where all are whole.

        Args:
            record: with its regions.
            images: positions in the record.
            latents: keys of the images' latents, [view][image]; they hang on crop and flip, so the maps do.
            flips: of each view whether it is mirrored.

        Raises:
            DataError: a mask that cannot be read.
        """
        if record.regions is None or all(record.regions[i] is None for i in images):
            return None
        rows = zip(latents, flips, strict=True)
        return tuple(
            tuple(self._want(record, i, key, flip) for i, key in zip(images, row, strict=True))
            for row, flip in rows
        )

    def store(self, units: Sequence[Unit], latents: Store, outside: list[str]) -> list[Unit]:
        """Make and store all maps; drop the units with a region that is cropped away whole.

        Args:
            units: of the data set.
            latents: store that has all latents.
            outside: gets where the dropped units' images are.

        Raises:
            DataError: a mask that is no image or of another shape than its image.
        """
        lost = {key for key, wanted in self._wanted.items() if not _stored(key, wanted, latents)}
        return [unit for unit in units if not self._note_lost(unit, lost, outside)]

    def _want(self, record: Record, image: int, latent: str, flip: bool) -> str:
        region = record.regions[image] if record.regions is not None else None
        if region is None:
            return ""
        with _named(record.source or record.images[image].where):
            key = content_key("region", region.key(), latent)
        self._wanted[key] = _Wanted(
            region=region, latent=latent, flip=flip, where=record.source or record.images[image].where
        )
        return key

    def _note_lost(self, unit: Unit, lost: set[str], outside: list[str]) -> bool:
        gone = [key for row in unit.regions or () for key in row if key in lost]
        if gone:
            outside.append(self._wanted[gone[0]].where)
            logger.warning("%s: its region lies outside the crop; it is left out", outside[-1])
        return bool(gone)


def _stored(key: str, wanted: _Wanted, latents: Store) -> bool:
    """Make and store one map; False where nothing of it is inside the crop."""
    if key in latents:
        return bool(latents.get(key)["region"].any())
    found = latents.get(wanted.latent)
    height, width = (int(v) for v in found["sizes"][:2])
    with _named(wanted.where):
        pixels = wanted.region.pixels(height, width)
    size = found["mean"].shape[-2], found["mean"].shape[-1]
    weights = map_to_latent(pixels, found["sizes"], wanted.flip, size)
    latents.add(key, {"region": weights})
    return bool(weights.any())


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Say which record a fault belongs to."""
    try:
        yield
    except (RegionError, OSError) as error:
        raise DataError(f"{where}: its region cannot be used ({error})") from error
