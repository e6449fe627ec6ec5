"""Two folders: ``w/x.png`` won against ``l/x.png``; the caption is in ``x.txt`` beside either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffalign.data.readers.base import IMAGE_SUFFIXES, Reader, readers, utf8
from diffalign.data.records import DataError, FileImage, Record


@readers.register("folder_wl")
class FolderWL(Reader):
    """Captions that differ between the two sides become own captions per image."""

    summary = "folder with w/x.png and l/x.png and captions x.txt"

    def matches(self, path: Path) -> bool:
        """Whether there are folders called w and l."""
        return (path / "w").is_dir() and (path / "l").is_dir()

    def records(self, path: Path) -> Iterator[Record]:
        """Yield a pair per name, sorted by name."""
        winners, losers = _images(path / "w"), _images(path / "l")
        lonely = sorted(winners.keys() ^ losers.keys())
        if lonely:
            side = "l" if lonely[0] in winners else "w"
            raise DataError(f"{path}: {lonely[0]!r} has no partner in {path / side} ({len(lonely)} such)")
        for name in sorted(winners):
            yield _pair(winners[name], losers[name])


def _images(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; winners belong into w/, losers into l/")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in found:
                raise DataError(f"{folder}: {found[path.stem].name} and {path.name} share a name; keep one")
            found[path.stem] = path
    return found


def _pair(winner: Path, loser: Path) -> Record:
    texts = [p.with_suffix(".txt") for p in (winner, loser)]
    captions = [_caption(t) for t in texts if t.is_file()]
    if not captions:
        raise DataError(f"{winner}: the caption is missing; write it to {texts[0]}")
    return Record(
        prompt=captions[0],
        images=(FileImage(winner), FileImage(loser)),
        kind="pair",
        values=(1.0, 0.0),
        prompts=tuple(captions) if len(set(captions)) > 1 else None,
        source=str(winner),
    )


def _caption(file: Path) -> str:
    with utf8(file):
        return file.read_text(encoding="utf-8").strip()
