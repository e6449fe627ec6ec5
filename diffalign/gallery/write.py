"""Writing galleries: of pictures in memory, of folders of results, or as a page for the voting server."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from diffalign.evaluate.report import Report, load_report, write_atomic
from diffalign.gallery.folders import Joined, join
from diffalign.gallery.items import GalleryItem, content_of
from diffalign.gallery.payload import gallery_hash, payload
from diffalign.gallery.pictures import beside, embedded, folder_of, served
from diffalign.gallery.render import render

logger = logging.getLogger(__name__)

EMBED_LIMIT = 150 * 2**20
"""Bytes above which browsers become slow."""
SERVED_LIMIT = 10 * 2**20
"""The same of a page that every rater loads from a server, which can send pictures one by one."""


def write_gallery(
    path: str | Path,
    items: Sequence[GalleryItem],
    report: Report | None,
    title: str,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the gallery of pictures in memory.

    Args:
        path: the HTML file.
        items: the prompts; all with the same models, seeds and judges.
        report: what ``report.build_report`` returned; without it the figures are computed from the items.
        title: heading and window title.
        overwrite: replace a file that is there.

    Raises:
        FileExistsError: the file is there and ``overwrite`` is not set.
        ValueError: no items, items that differ in models, seeds or judges, or a picture of the wrong kind.
    """
    path = _free(Path(path), overwrite)
    html = render_gallery(items, report, title)
    if len(html) > EMBED_LIMIT:
        logger.warning(
            "%s has %d MB and will open slowly: show fewer prompts or seeds", path, len(html) >> 20
        )
    return write_atomic(path, html)


def render_gallery(items: Sequence[GalleryItem], report: Report | None, title: str) -> str:
    """Return the HTML; arguments and errors as for ``write_gallery``."""
    return render(payload(content_of(items), report, title), server=False)


def write_gallery_of(
    folders: Sequence[Path],
    output: Path,
    *,
    report: Report | None = None,
    title: str = "",
    embed_limit: int = EMBED_LIMIT,
    overwrite: bool = False,
) -> Path:
    """Write the gallery of folders of results.

    Args:
        folders: folders that ``diffalign evaluate`` wrote; they must share prompts and seeds.
        output: the HTML file. Pictures that are not embedded go to ``<its stem>_images`` beside it.
        report: the figures of the summary; without it they are computed from the rows' scores.
        title: heading and window title; the models' names by default.
        embed_limit: most bytes of pictures, as base64, that are put into the file.
        overwrite: replace a gallery that is there.

    Raises:
        FileExistsError: the file is there and ``overwrite`` is not set, or the folder holds other files.
        ResultsError: see ``folders.join``; nothing is written then.
    """
    output = _free(output, overwrite)
    joined = join(folders, None if report is None else report["base"])
    content = embedded(joined, embed_limit)
    if content is not None:
        return write_atomic(output, render(payload(content, report, title), server=False))
    folder = output.with_name(f"{output.stem}_images")
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists: give another name, or overwrite it with --overwrite")
    return _with_folder(joined, output, folder, report, title)


def page_of(
    folders: Sequence[Path],
    *,
    title: str = "",
    server: bool = True,
    embed_limit: int = SERVED_LIMIT,
    query: str = "",
) -> tuple[str, str]:
    """Return the page of folders of results, and the gallery's hash.

    Args:
        folders: see ``write_gallery_of``.
        title: heading and window title; the models' names by default.
        server: whether the page sends its votes to where it came from.
        embed_limit: most bytes of pictures that are put into the page; with more of them each is asked for
            when it is looked at, as ``pictures/<sha256>.<kind>``.
        query: follows these addresses, for example ``?token=...``.

    Raises:
        ResultsError: see ``folders.join``.
    """
    report = report_in(folders)
    joined = join(folders, None if report is None else report["base"])
    content = embedded(joined, embed_limit) or served(joined, query)
    return render(payload(content, report, title), server=server), gallery_hash(content)


def report_in(folders: Sequence[Path]) -> Report | None:
    """Return the report of a folder of results; None without one, and of several folders.

    Raises:
        ReportError: it is damaged.
    """
    file = folders[0] / "report.json"
    return load_report(file) if len(folders) == 1 and file.exists() else None


def _with_folder(joined: Joined, output: Path, folder: Path, report: Report | None, title: str) -> Path:
    html = render(payload(beside(joined, folder.name), report, title), server=False)
    with folder_of(joined, folder):
        return write_atomic(output, html)


def _free(path: Path, overwrite: bool) -> Path:
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder: name the HTML file")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists: give another name, or overwrite=True (--overwrite) to replace it"
        )
    return path
