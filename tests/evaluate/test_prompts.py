"""Prompt files and the split between selecting and reporting."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from diffalign.evaluate.prompts import (
    EvalPrompt,
    PromptFileError,
    part_of,
    read_prompts,
    split_prompts,
    write_tasks,
)
from scorers.tasks import Include, read_tasks


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_text_has_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "p.txt", "\ufeffa red circle\r\n\n  a blue, square \n# not a comment")
    assert [p.prompt for p in read_prompts(path)] == ["a red circle", "a blue, square", "# not a comment"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "p.jsonl",
            '{"prompt": "a, b", "category": "Abstract", "challenge": "Basic"}\n\n{"Prompt": "c", "id": 4}\n',
        ),
        ("p.csv", 'id,Prompt,Category,CHALLENGE\n1,"a, b",Abstract,Basic\n\n2,c\n'),
        ("p.tsv", "Prompt\tCategory\tChallenge\tNote\na, b\tAbstract\tBasic\tx\nc\n"),
    ],
)
def test_tables_carry_tags(tmp_path: Path, name: str, text: str) -> None:
    found = read_prompts(write(tmp_path, name, text))
    assert found == [
        EvalPrompt(prompt="a, b", category="Abstract", challenge="Basic"),
        EvalPrompt(prompt="c"),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"anime": ["a cat"], "photo": ["a dog", "a sign \\"Go\\""]}'),
        ("p.csv", 'Prompts,Category\na cat,anime\na dog,photo\n"a sign ""Go""",photo\n'),
        ("p.tsv", 'Prompt\tCategory\na cat\tanime\na dog\tphoto\na sign "Go"\tphoto\n'),
        ("q.tsv", 'Prompt\tCategory\na cat\tanime\na dog\tphoto\n"a sign ""Go"""\tphoto\n'),
    ],
)
def test_published_sets_are_read_as_they_are(tmp_path: Path, name: str, text: str) -> None:
    found = read_prompts(write(tmp_path, name, text))
    assert [(p.prompt, p.category) for p in found] == [
        ("a cat", "anime"),
        ("a dog", "photo"),
        ('a sign "Go"', "photo"),
    ]


def test_a_quote_at_the_start_stays(tmp_path: Path) -> None:
    path = write(tmp_path, "p.tsv", 'Prompt\tCategory\n"Go" on a sign\tA\n"Go"\tB\n')
    assert [p.prompt for p in read_prompts(path)] == ['"Go" on a sign', '"Go"']


def test_a_folder_of_json_has_a_category_a_file(tmp_path: Path) -> None:
    write(tmp_path, "photo.json", '["a dog"]')
    write(tmp_path, "anime.json", '[{"prompt": "a cat", "challenge": "hard"}]')
    assert read_prompts(tmp_path) == [
        EvalPrompt(prompt="a cat", category="anime", challenge="hard"),
        EvalPrompt(prompt="a dog", category="photo"),
    ]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    table = pa.table({"Prompt": ["a", "b"], "Category": ["x", None], "image": [b"1", b"2"]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == [
        EvalPrompt(prompt="a", category="x"),
        EvalPrompt(prompt="b"),
    ]


def test_geneval_keeps_what_its_detector_needs(tmp_path: Path) -> None:
    line = '{"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "a photo of two cows"}'
    (found,) = read_prompts(write(tmp_path, "p.jsonl", line + "\n"))
    assert found.category == "counting"
    file = write_tasks(tmp_path / "tasks.jsonl", [found, EvalPrompt(prompt="a dog")])
    assert file is not None
    assert read_tasks(file)("a photo of two cows").include == (Include(label="cow", count=2),)
    assert write_tasks(tmp_path / "none.jsonl", [EvalPrompt(prompt="a dog")]) is None


def test_a_prompt_counts_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "p.csv", "prompt,category\na,first\nb,\na ,again\n")
    with caplog.at_level(logging.WARNING):
        assert [(p.prompt, p.category) for p in read_prompts(path)] == [("a", "first"), ("b", "")]
    assert "left out 1 prompts" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "\n \n", "holds no prompts"),
        ("p.md", "a", r"prompt files end in \.txt, \.jsonl"),
        ("p.txt", b"a\xff\xfe", "not UTF-8 at byte 1"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2 is not JSON"),
        ("p.jsonl", '["a"]', "line 1 is not an object"),
        ("p.jsonl", '{"prompt": 3}', "line 1: prompt is 3, expected text"),
        ("p.jsonl", '{"prompt": " "}', "line 1: the prompt is empty"),
        ("p.jsonl", '{"promt": "a"}', "no column 'prompt', only 'promt'; rename 'promt'"),
        ("p.csv", "caption,kind\na,b\n", "no column 'prompt', only 'caption', 'kind'; rename 'caption'"),
        ("p.csv", "", "no column 'prompt', only nothing"),
        ("p.csv", "prompt,category\na, b, c\n", "line 2 has 3 columns, the header 2: .* needs quotes"),
        ("p.csv", "prompt,category\n,b\n", "line 2: the prompt is empty"),
        ("p.tsv", "prompt\tcategory\na\tb\tc\n", "line 2 has 3 columns, the header 2: .* use .jsonl"),
        ("p.json", '{"prompt": "a"}', "expected a list of prompts"),
        ("p.json", "[3]", "number 0 is not an object"),
        ("p.json", "[", "is not JSON"),
    ],
)
def test_clear_errors(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(PromptFileError, match=message) as error:
        read_prompts(write(tmp_path, name, text))
    assert name in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="is not a file"):
        read_prompts(tmp_path / "none.txt")


def test_split_is_about_thirty_to_seventy_and_loses_nothing() -> None:
    prompts = [EvalPrompt(prompt=f"prompt {i}") for i in range(3000)]
    select, report = split_prompts(prompts)
    assert abs(len(select) / 3000 - 0.3) < 0.03
    assert sorted([*select, *report], key=prompts.index) == prompts
    assert split_prompts(reversed(prompts))[0] == select[::-1]


PINNED = [0, 5, 7, 9, 10, 15, 18]


def test_split_never_changes() -> None:
    # Pinned: a split that moves would let a checkpoint be chosen on prompts that a later report uses.
    select = [i for i in range(20) if part_of(f"prompt {i}") == "select"]
    assert select == PINNED
    assert part_of(" a red circle\n") == part_of("a red circle")


def test_split_shares() -> None:
    prompts = [EvalPrompt(prompt=str(i)) for i in range(50)]
    assert split_prompts(prompts, 0.0)[0] == []
    assert split_prompts(prompts, 1.0)[1] == []
    with pytest.raises(ValueError, match="select_share is 30"):
        split_prompts(prompts, 30)
