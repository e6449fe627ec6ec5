"""Latents and prompt embeddings, computed once and found again by content, never by file name or date."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from diffalign.data.keys import content_key
from diffalign.data.records import DataError, ImageSource, Kind, Record
from diffalign.data.region_maps import RegionMaps
from diffalign.data.split import normalise
from diffalign.data.store import Store
from diffalign.data.transform import BadImageError, Transform, View, decode

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with (what: "images" or "prompts", done, total)."""


class Encoder(Protocol):
    """The part of a Policy that the cache uses."""

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] to posterior mean and log-variance, (B, C, h, w) each, unscaled."""

    def encode_prompts(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """One dict of unpadded tensors per prompt."""

    def encoder_id(self, part: Literal["vae", "text"]) -> str:
        """Digest of the encoder's weights and configuration."""


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """How the cache is made."""

    batch: int = 16
    """Images encoded at once; prompts in fours of it."""
    max_bad_share: float = 0.01
    """Share of images that may be unreadable; above it the build stops."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """How latents and embeddings are stored; part of the key."""


@dataclass(kw_only=True)
class CacheReport:
    """What was made, found and skipped."""

    images: int = 0
    """Images in the records, repeats included."""
    encoded: int = 0
    """Latents made now (an image has one per view)."""
    found: int = 0
    """Latents that were there already, repeats included."""
    prompts_encoded: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(where, reason) of each unreadable image."""
    equal: list[str] = field(default_factory=list)
    """Sources of pairs whose two images are the same bytes."""
    outside: list[str] = field(default_factory=list)
    """Images whose region is cropped away whole; their comparisons are left out."""

    def summary(self) -> str:
        """One line for the log."""
        cropped = f"{len(self.outside)} comparisons whose region is cropped away; " if self.outside else ""
        return (
            f"{self.images} images: {self.encoded} latents made, {self.found} found in the cache, "
            f"{len(self.bad)} images unreadable, {len(self.equal)} pairs of equal images; {cropped}"
            f"{self.prompts_encoded} prompts encoded"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """One comparison, ready for training: keys instead of images."""

    sample: int
    """Position of its record in the list that the cache was made from."""
    values: tuple[float, ...]
    latents: tuple[tuple[str, ...], ...]
    """Keys, [view][image]."""
    prompts: tuple[str, ...]
    """Keys, one per image."""
    undecided: bool
    gap: float = 0.0
    """How clear the comparison is: see ``Record.gap``."""
    margin: float | None = None
    weight: float = 1.0
    soft: tuple[float, float] | None = None
    score: tuple[float, ...] | None = None
    regions: tuple[tuple[str, ...], ...] | None = None
    """Keys of the weights of places, [view][image], "" for a whole image; None where all are whole."""


@dataclass(frozen=True, kw_only=True)
class CachedSet:
    """All comparisons of a data set with their cached tensors; what the loader reads."""

    kind: Kind
    units: tuple[Unit, ...]
    latents: Store
    prompts: Store
    empty_prompt: str
    """Key of the empty prompt, for prompt dropout."""
    report: CacheReport
    captions: frozenset[str]
    """All captions of the records, as ``split.normalise`` makes them: what is no held-out prompt."""


def build_cache(
    records: Sequence[Record],
    encoder: Encoder,
    folder: str | Path,
    *,
    transform: Transform,
    options: CacheOptions | None = None,
    progress: Progress | None = None,
) -> CachedSet:
    """Encode what is not in ``folder`` yet.

    Records with an unreadable image, and pairs of two equal images, are skipped and listed in the report.

    Args:
        records: one kind of comparison; labels with several images count as one comparison each.
        encoder: a Policy, or anything with its three methods.
        folder: cache folder; may be shared by runs, models and data sets.
        transform: from bytes to pixels.
        options: batch size, tolerance, storage.
        progress: called as work gets done.

    Raises:
        DataError: no records, mixed kinds, too many unreadable images, only pairs of equal images, or NaN
            from an encoder.
    """
    if not records:
        raise DataError("the data set is empty: there is no record to train on")
    kinds = sorted({record.kind for record in records})
    if len(kinds) > 1:
        raise DataError(f"the data set mixes {' and '.join(kinds)}; train on one kind at a time")
    builder = _Builder(encoder, Path(folder), transform, options or CacheOptions(), progress or _silent)
    units = builder.build(records)
    logger.info("%s", builder.report.summary())
    return CachedSet(
        kind=records[0].kind,
        units=tuple(units),
        latents=builder.latents,
        prompts=builder.prompts,
        empty_prompt=builder.prompt_key(""),
        report=builder.report,
        captions=frozenset(normalise(r.prompt_of(i)) for r in records for i in range(len(r.images))),
    )


class _Builder:
    """State of one build: both stores, the batch that is filling up, and the report."""

    def __init__(
        self, encoder: Encoder, folder: Path, transform: Transform, options: CacheOptions, progress: Progress
    ) -> None:
        self.encoder, self.transform, self.options, self.progress = encoder, transform, options, progress
        self.latents, self.prompts = Store(folder / "latents"), Store(folder / "prompts")
        self.dtype: torch.dtype = getattr(torch, options.dtype)
        self.report = CacheReport()
        self.pending: dict[str, tuple[str, Tensor, Tensor]] = {}
        self.regions = RegionMaps()
        self.ids = {"vae": encoder.encoder_id("vae"), "text": encoder.encoder_id("text")}

    def build(self, records: Sequence[Record]) -> list[Unit]:
        total = sum(len(record.images) for record in records)
        try:
            units = [unit for i, record in enumerate(records) for unit in self.comparisons(i, record, total)]
            self.encode_pending()
            units = self.regions.store(units, self.latents, self.report.outside)
            self.check_left(records, units)
            self.encode_prompts(records, units)
        finally:
            # Also on an error: what is encoded need not be encoded again.
            self.latents.flush()
            self.prompts.flush()
        return units

    # ------------------------------------------------------------------ images

    def comparisons(self, sample: int, record: Record, total: int) -> Iterator[Unit]:
        """Units of a record, with their latents made, found or pending."""
        count = len(record.images)
        for images in [(i,) for i in range(count)] if record.kind == "labels" else [tuple(range(count))]:
            try:
                latents = self.latent_keys([record.images[i] for i in images])
            except BadImageError as error:
                self.note_bad(error, total)
                continue
            finally:
                self.report.images += len(images)
                self.progress("images", self.report.images, total)
            if record.kind == "pair" and latents[0][0] == latents[0][1]:
                self.report.equal.append(record.source or record.images[0].where)
                logger.warning(
                    "%s: both images are the same bytes; the pair is skipped", self.report.equal[-1]
                )
                continue
            yield self.unit(sample, record, images, latents)

    def unit(
        self, sample: int, record: Record, images: Sequence[int], latents: tuple[tuple[str, ...], ...]
    ) -> Unit:
        values = tuple(record.values[i] for i in images)
        return Unit(
            sample=sample,
            values=values,
            latents=latents,
            prompts=tuple(self.prompt_key(record.prompt_of(i)) for i in images),
            undecided=values == (0.5,) if record.kind == "labels" else record.undecided,
            gap=record.gap,
            margin=record.margin,
            weight=record.weight,
            soft=record.soft,
            score=tuple(record.score[i] for i in images) if record.score is not None else None,
            regions=self.regions.keys(record, images, latents, self.transform.flips),
        )

    def latent_keys(self, images: Sequence[ImageSource]) -> tuple[tuple[str, ...], ...]:
        """Keys [view][image]; what has no latent yet joins the pending batch."""
        datas = [_read(image) for image in images]
        digests = [hashlib.sha256(data).hexdigest() for data in datas]
        views = self.transform.views("".join(digests))
        keys = tuple(tuple(self.latent_key(digest, view) for digest in digests) for view in views)
        for i, (image, data) in enumerate(zip(images, datas, strict=True)):
            new = {row[i]: view for row, view in zip(keys, views, strict=True) if not self.known(row[i])}
            self.report.found += len(views) - len(new)
            if new:
                self.add_pending(decode(data, image.where), image.where, new)
        return keys

    def latent_key(self, digest: str, view: View) -> str:
        return content_key("latent", digest, self.transform.key(view), self.ids["vae"], self.options.dtype)

    def known(self, key: str) -> bool:
        return key in self.latents or key in self.pending

    def add_pending(self, picture: Image.Image, where: str, views: dict[str, View]) -> None:
        for key, view in views.items():
            pixels, sizes = self.transform.apply(picture, view)
            self.pending[key] = (where, pixels, sizes)
            if len(self.pending) >= self.options.batch:
                self.encode_pending()

    def encode_pending(self) -> None:
        if not self.pending:
            return
        rows = list(self.pending.values())
        mean, logvar = self.encoder.encode_images(torch.stack([pixels for _, pixels, _ in rows]))
        mean, logvar = mean.to(self.dtype), logvar.to(self.dtype)
        finite = (mean.isfinite() & logvar.isfinite()).flatten(1).all(1).tolist()
        for key, (where, _, sizes), good, m, v in zip(self.pending, rows, finite, mean, logvar, strict=True):
            if not good:
                raise DataError(
                    f"{where}: its latent holds NaN or Inf; run the VAE in fp32 or bf16, not in fp16"
                )
            self.latents.add(key, {"mean": m, "logvar": v, "sizes": sizes})
        self.report.encoded += len(rows)
        self.pending = {}

    def note_bad(self, error: BadImageError, total: int) -> None:
        self.report.bad.append((error.where, error.reason))
        logger.warning("skipped %s", error)
        if len(self.report.bad) > self.options.max_bad_share * total:
            listed = "; ".join(f"{where}: {reason}" for where, reason in self.report.bad[:5])
            raise DataError(
                f"{len(self.report.bad)} of {total} images cannot be read, more than max_bad_share="
                f"{self.options.max_bad_share:g} allows to skip ({listed}); repair them"
            ) from error

    def check_left(self, records: Sequence[Record], units: Sequence[Unit]) -> None:
        if units:
            return
        if len(self.report.equal) == len(records):
            raise DataError(f"the two images of every pair are the same bytes (e.g. {self.report.equal[0]})")
        raise DataError(
            f"the data set is empty: all {len(records)} records have unreadable images "
            f"({len(self.report.bad)}) or equal ones ({len(self.report.equal)})"
        )

    # ------------------------------------------------------------------ prompts

    def prompt_key(self, prompt: str) -> str:
        return content_key("prompt", prompt, self.ids["text"], self.options.dtype)

    def encode_prompts(self, records: Sequence[Record], units: Sequence[Unit]) -> None:
        """Encode the prompts of used records, each once, and the empty one."""
        used = [records[sample] for sample in dict.fromkeys(unit.sample for unit in units)]
        prompts = dict.fromkeys(
            ["", *(record.prompt_of(i) for record in used for i in range(len(record.images)))]
        )
        missing = [prompt for prompt in prompts if self.prompt_key(prompt) not in self.prompts]
        size = 4 * self.options.batch
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            for prompt, row in zip(part, self.encoder.encode_prompts(part), strict=True):
                self.prompts.add(self.prompt_key(prompt), self.stored(prompt, row))
            self.report.prompts_encoded += len(part)
            self.progress("prompts", self.report.prompts_encoded, len(missing))

    def stored(self, prompt: str, row: dict[str, Tensor]) -> dict[str, Tensor]:
        row = {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in row.items()
        }
        if not all(bool(value.isfinite().all()) for value in row.values()):
            raise DataError(
                f"prompt {prompt!r}: its embedding holds NaN or Inf; run the text encoder in fp32 or bf16"
            )
        return row


def _read(image: ImageSource) -> bytes:
    try:
        return image.read()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, a rotten parquet page
        reason = getattr(error, "strerror", None) or error
        raise BadImageError(image.where, f"cannot be read ({reason})") from error


def _silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""
