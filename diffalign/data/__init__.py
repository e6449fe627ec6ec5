"""Preferences: read them in any format, cache latents and embeddings, split, load batches of comparisons."""

from __future__ import annotations

from diffalign.data.cache import CachedSet, CacheOptions, CacheReport, build_cache
from diffalign.data.loader import Batch, Loader, LoaderOptions
from diffalign.data.readers import read, readers
from diffalign.data.records import (
    BytesImage,
    DataError,
    FileImage,
    ImageSource,
    ParquetImage,
    Record,
    TarImage,
)
from diffalign.data.region import Region
from diffalign.data.split import split_by, split_records, split_select_report
from diffalign.data.transform import BadImageError, Transform
from diffalign.data.writers import write

__all__ = [
    "BadImageError",
    "Batch",
    "BytesImage",
    "CacheOptions",
    "CacheReport",
    "CachedSet",
    "DataError",
    "FileImage",
    "ImageSource",
    "Loader",
    "LoaderOptions",
    "ParquetImage",
    "Record",
    "Region",
    "TarImage",
    "Transform",
    "build_cache",
    "read",
    "readers",
    "split_by",
    "split_records",
    "split_select_report",
    "write",
]
