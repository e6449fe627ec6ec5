"""results.jsonl: written and read back; damage is named."""

from pathlib import Path

import pytest

from diffalign.evaluate.results import ResultsError, Row, models_of, prompt_id, read_rows, write_rows


def row(model: str, path: str = "m/p/0.png") -> Row:
    return Row(
        prompt_id=prompt_id("a red circle"), prompt="a red circle", seed=0, model=model, path=path,
        width=64, height=64, sha256="0" * 64, scores={"shapes-large": 0.5},
    )  # fmt: skip


def test_rows_are_read_as_written(tmp_path: Path) -> None:
    rows = [row("base"), row("dpo")]
    write_rows(tmp_path, rows)
    assert read_rows(tmp_path) == rows == read_rows(tmp_path / "results.jsonl")
    assert models_of(rows) == ["base", "dpo"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="diffalign evaluate"):
        read_rows(tmp_path)
    write_rows(tmp_path, [row("base", "../../secret.png")])
    with pytest.raises(ResultsError, match=r"results.jsonl:1: path .* leads out"):
        read_rows(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"v": 2}\n')
    with pytest.raises(ResultsError, match="another version"):
        read_rows(tmp_path)
