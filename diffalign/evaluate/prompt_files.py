"""Rows of prompt files, whatever their form; ``prompts`` makes prompts of them."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")


class PromptFileError(ValueError):
    """A prompt file that cannot be read; the message names the file, the line and the remedy."""


Row = tuple[str, Mapping[str, object]]
"""Where a row stands, and its columns by lower-case name, ``prompt`` among them."""


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a prompt file, or of the .json files of a folder (HPSv2 has one for each style).

    Raises:
        PromptFileError: no such file, another suffix, no prompt column, or a row that is broken.
    """
    if path.is_dir():
        yield from _folder_rows(path)
        return
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PromptFileError(
            f"{path}: prompt files end in {', '.join(SUFFIXES)}, not in {path.suffix or 'nothing'!r}"
        )
    if not path.is_file():
        raise PromptFileError(f"{path} is not a file: check the path (relative paths start at {Path.cwd()})")
    if suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    readers = {
        ".txt": _lines,
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".tsv": _tsv_rows,
    }
    yield from readers[suffix](path, _read_text(path))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptFileError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error


def _folder_rows(folder: Path) -> Iterator[Row]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise PromptFileError(f"{folder} holds no .json file: name a file of prompts")
    for file in files:
        for where, row in _json_rows(file, _read_text(file)):
            yield where, {"category": file.stem, **row}


def _lines(path: Path, text: str) -> Iterator[Row]:
    for n, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{path} line {n}", {"prompt": line}


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    for n, line in enumerate(text.split("\n"), 1):  # not splitlines(): U+2028 is allowed inside a JSON string
        if line.strip():
            where = f"{path} line {n}"
            yield where, _object(_parsed(line, where), where)


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    """A list of prompts or of objects, or one of lists by style: their category."""
    content = _parsed(text, str(path))
    groups = content if isinstance(content, dict) else {None: content}
    for category, items in groups.items():
        if not isinstance(items, list):
            raise PromptFileError(
                f"{path}: expected a list of prompts, or lists of prompts by category; a .jsonl has an "
                "object a line"
            )
        for n, item in enumerate(items):
            where = f"{path}, number {n}" + (f" of {category!r}" if category is not None else "")
            row = {"prompt": item} if isinstance(item, str) else _object(item, where)
            yield where, row if category is None else {"category": category, **row}


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}"
        raise PromptFileError(f"{where} is not JSON ({error.msg} at {place})") from error


def _object(row: object, where: str) -> Mapping[str, object]:
    if not isinstance(row, dict):
        raise PromptFileError(f'{where} is not an object: write {{"prompt": "..."}}')
    return _named({str(key).lower(): value for key, value in row.items()}, where)


def _csv_rows(path: Path, text: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""))
    cells = ((reader.line_num, row) for row in reader)
    yield from _table_rows(path, cells, "a prompt with a comma in it needs quotes")


def _tsv_rows(path: Path, text: str) -> Iterator[Row]:
    """PartiPrompts has quotes within prompts as they are, and tables of other tools have them doubled."""
    lines = enumerate(text.split("\n"), 1)
    cells = ((n, [_unquoted(cell) for cell in line.rstrip("\r").split("\t")]) for n, line in lines)
    yield from _table_rows(path, cells, "a prompt with a tab in it cannot be in a .tsv; use .jsonl")


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    doubled = cell[:1] == cell[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if doubled else cell


def _table_rows(path: Path, cells: Iterator[tuple[int, list[str]]], remedy: str) -> Iterator[Row]:
    names = [name.strip().lower() for name in next(cells, (0, []))[1]]
    _named(dict.fromkeys(names), f"the header of {path}")
    for number, row in cells:
        where = f"{path} line {number}"
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(names):
            raise PromptFileError(f"{where} has {len(row)} columns, the header {len(names)}: {remedy}")
        yield where, _named(dict(zip(names, row, strict=False)), where)


def _parquet_rows(path: Path) -> Iterator[Row]:
    from diffalign.data.records import parquet

    file = parquet().ParquetFile(path)
    wanted = ("prompt", "prompts", "category", "challenge", "tag")
    names = [name for name in file.schema_arrow.names if name.lower() in wanted]
    _named({name.lower(): None for name in file.schema_arrow.names}, str(path))
    for n, row in enumerate(file.read(columns=names).to_pylist()):
        where = f"{path} row {n}"
        yield where, _named({key.lower(): value for key, value in row.items()}, where)


def _named(row: dict[str, object], where: str) -> Mapping[str, object]:
    """A row whose prompt is called so; DrawBench says Prompts, GenEval calls its categories tags."""
    if "prompt" not in row and "prompts" in row:
        row["prompt"] = row.pop("prompts")
    if "category" not in row and "tag" in row:
        row["category"] = row["tag"]
    _require_prompt_column(where, list(row))
    return row


def _require_prompt_column(where: str, names: Sequence[str]) -> None:
    if "prompt" in names:
        return
    near = difflib.get_close_matches("prompt", names, n=1) or [n for n in names if n in ("caption", "text")]
    hint = f"; rename {near[0]!r}" if near else ""
    raise PromptFileError(
        f"{where} has no column 'prompt', only {', '.join(map(repr, names)) or 'nothing'}{hint}"
    )
