"""Scoring at scale: every picture once whatever happens, and folders compared."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from diffalign.data.records import DataError
from diffalign.label.compare import compare_folders
from diffalign.label.judges import Judge
from diffalign.label.many import Parts, Share, _plan, score_many
from diffalign.label.pictures import Picture, pictures
from scorers.base import ScorerBase
from scorers.each import FAULT, LOST
from scorers.exchange import RemoteError
from scorers.protocol import Details


class Grey(ScorerBase):
    """Mean brightness; counts what it saw, and stops the process it is in after ``die_after`` pictures."""

    name, licence, citation = "grey", "none", "none"
    needs = frozenset()

    def __init__(self, die_after: int = 10**9) -> None:
        super().__init__()
        self.seen, self.die_after = 0, die_after

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        if self.seen >= self.die_after:
            raise KeyboardInterrupt
        self.seen += len(x01)
        return x01.mean((1, 2, 3))


def judge(scorer: ScorerBase | None = None) -> Judge:
    return Judge(name="grey", scorer=scorer or Grey(), id="1")


def png(level: int, size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, n: int = 20, shift: int = 0, prompts: int = 0) -> Path:
    root.mkdir()
    for i in range(n):
        (root / f"{i:03d}.png").write_bytes(png(10 * i + shift))
        if prompts:
            (root / f"{i:03d}.txt").write_text(f"prompt {i % prompts}")
    return root


def rows(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_pictures_of_every_kind_of_source(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = folder(tmp_path / "plain", 2, prompts=2)
    listed = folder(tmp_path / "listed", 3)
    lines = [
        {"file_name": "000.png", "text": "a"},
        {"image_0": "001.png", "image_1": "000.png", "prompt": "b"},
    ]
    (listed / "metadata.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    table = {"jpg_0": [png(1), png(2)], "jpg_1": [png(3), png(4)], "caption": ["c", "d"]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=1)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in [
            ("0.png", png(9)),
            ("0.txt", b"e"),
            ("1.jpg", png(8)),
            ("1.json", b'{"prompt": "f"}'),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = pictures([plain, listed, tmp_path / "t.parquet", tmp_path / "s.tar", listed / "002.png"])
    assert [p.prompt for p in found] == [
        "prompt 0",
        "prompt 1",
        "a",
        "b",
        "b",
        "c",
        "c",
        "d",
        "d",
        "e",
        "f",
        None,
    ]
    assert len({p.key for p in found}) == 12
    assert [p.image.read() for p in found[5:11]] == [png(v) for v in (1, 3, 2, 4, 9, 8)]
    assert {p.prompt for p in pictures([plain], "all")} == {"all"}
    with pytest.raises(DataError, match="named twice"):
        pictures([plain, plain / "001.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        pictures([tmp_path / "empty"])


def test_rows_are_in_order_and_bad_pictures_have_one_too(tmp_path: Path) -> None:
    root = folder(tmp_path / "a")
    (root / "003.png").write_bytes(b"rubbish")
    items = [*pictures([root]), Picture(key="odd", image=pictures([root])[0].image, prompt=None)]
    seen: list[tuple[int, int]] = []
    found = score_many(items, [judge()], tmp_path / "out.jsonl", batch=8, progress=lambda *a: seen.append(a))
    table = rows(tmp_path / "out.jsonl")
    assert [row["key"] for row in table] == [item.key for item in items]
    assert table[3]["grey"] is None
    assert "no picture" in str(table[3]["grey.status"])
    assert table[19]["grey"] == pytest.approx(190 / 255)
    assert (found.made, found.kept, found.failed) == (21, 0, 1)
    assert seen == [(8, 21), (16, 21), (21, 21)]
    assert "images/s" in found.line()
    assert not (tmp_path / "out.jsonl.parts").exists()
    with pytest.raises(FileExistsError, match="not overwritten"):
        score_many(items, [judge()], tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"\.jsonl or \.parquet"):
        score_many(items, [judge()], tmp_path / "out.csv")


def test_a_prompt_that_is_missing_is_that_rows_failure(tmp_path: Path) -> None:
    scorer = Grey()
    scorer.needs = frozenset({"prompt"})
    score_many(pictures([folder(tmp_path / "a", 2)]), [judge(scorer)], tmp_path / "out.jsonl")
    assert "prompt is empty" in str(rows(tmp_path / "out.jsonl")[0]["grey.status"])


def test_killed_and_started_again_no_row_is_lost_and_none_is_twice(tmp_path: Path) -> None:
    items, out = pictures([folder(tmp_path / "a")]), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_many(items, [judge(Grey(die_after=8))], out, batch=4)
    (part,) = (tmp_path / "out.jsonl.parts").glob("*.jsonl")
    with open(part, "a") as file:
        file.write('{"key": "torn li')  # a kill in the middle of a line
    assert not out.exists()
    with pytest.raises(DataError, match="other pictures, prompts or scorers"):
        score_many(items[1:], [judge()], out)
    shares = [Share(rank=i, world=3) for i in range(3)]  # go on with three processes instead of one
    found = [score_many(items, [judge()], out, batch=4, share=share) for share in shares]
    assert [f.output for f in found] == [None, None, out]
    assert [f.made for f in found] == [0, 5, 7]
    assert [row["key"] for row in rows(out)] == [item.key for item in items]
    assert score_many(items, [judge()], out, share=shares[0]).made == 0  # a slower process finds it done


def test_two_processes_never_write_one_share(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    items, out = pictures([folder(tmp_path / "a", 2)]), tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        score_many(items, [judge(Grey(die_after=0))], out)
    with open(tmp_path / "out.jsonl.parts" / "00000-of-00001.jsonl", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is writing"):
            score_many(items, [judge()], out)


def test_parquet_out(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    items = pictures([folder(tmp_path / "a", 3)], "p")
    score_many(items, [judge()], tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    assert list(table) == ["key", "prompt", "grey", "grey.status"]
    assert table["grey"] == pytest.approx([0, 10 / 255, 20 / 255])


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [list(Share(rank=i, world=3).of(7)) for i in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]
    monkeypatch.setitem(os.environ, "RANK", "1")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert Share.of_environment() == Share(rank=1, world=2)
    with pytest.raises(ValueError, match="process 2 of 2"):
        Share(rank=2, world=2)


def test_compare_by_hand(tmp_path: Path) -> None:
    base, model = folder(tmp_path / "a", prompts=10), folder(tmp_path / "b", shift=20, prompts=10)
    (verdict,) = compare_folders(base, model, [judge()])
    found = verdict.comparison
    assert (found.prompts, found.seeds) == (10, 2)
    assert found.mean_gain.value == pytest.approx(20 / 255)
    # seeds 100 grey levels apart: s.d. 70.7, so that 20 levels are 0.28 s.d. and above the margin of 0.25
    assert (found.win_rate.value, found.win_rate.wins) == (1.0, 20)
    assert 0.69 < found.win_rate.low < 0.7  # 0.025 ** (1 / 10)
    line = verdict.line(base, model)
    assert "in 100.0% [69.2%, 100.0%] of 20 pairs over 10 prompts (W 20 T 0 L 0)" in line
    (back,) = compare_folders(model, base, [judge()])
    assert back.comparison.win_rate.value == 0.0


def test_compare_without_seeds_or_partners(tmp_path: Path) -> None:
    base, model = folder(tmp_path / "a", 6), folder(tmp_path / "b", 6, shift=1)
    (verdict,) = compare_folders(base, model, [judge()], "p")
    assert (verdict.comparison.prompts, verdict.margin_known) == (6, False)
    assert verdict.comparison.win_rate.value == 1.0
    assert "mean gain 0.003922" in verdict.line(base, model)
    (model / "005.png").unlink()
    with pytest.raises(DataError, match=r"1 pictures have no partner.*005\.png"):
        compare_folders(base, model, [judge()], "p")
    (base / "005.png").write_bytes(b"rubbish")
    (model / "005.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"005\.png.*gave no score"):
        compare_folders(base, model, [judge()], "p")


@pytest.mark.slow
def test_spawned_processes_fail_loudly() -> None:
    from diffalign.label.many import spawn

    with pytest.raises(ChildProcessError, match="1 of 1 processes failed"):
        spawn(1, ["no-such-command"])


def test_resizing_while_reading_changes_nothing(tmp_path: Path) -> None:
    from scorers.preprocess import Preprocess

    class Sized(Grey):
        preprocess = Preprocess(size=6)

        def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
            return self.preprocess(x01)[:, 0, 1:3, 2:5].mean((1, 2))

    root = folder(tmp_path / "a", 3)
    (root / "wide.png").write_bytes(png(200, (9, 5)))
    items, seen = pictures([root]), []
    scorer = Sized()
    score_many(items, [judge(scorer)], tmp_path / "one.jsonl")
    twice = [judge(scorer), Judge(name="again", scorer=Sized(), id="2")]
    score_many(items, twice, tmp_path / "two.jsonl")
    for one, two in zip(rows(tmp_path / "one.jsonl"), rows(tmp_path / "two.jsonl"), strict=True):
        seen.append((one["grey"], two["grey"], two["again"]))
    assert [a for a, _, _ in seen] == pytest.approx([b for _, b, _ in seen], abs=1e-6)
    assert [b for _, b, _ in seen] == [c for _, _, c in seen]


def test_commands_say_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffalign.label import at_scale

    monkeypatch.setattr(at_scale, "refuse_unknown", lambda specs: None)
    monkeypatch.setattr(at_scale, "load_judges", lambda specs, device, allow_hub: [judge()])
    a, b = folder(tmp_path / "a", 4, prompts=2), folder(tmp_path / "b", 4, shift=50, prompts=2)
    line = at_scale.score_to_file([str(a), str(b)], ["grey"], None, tmp_path / "out.jsonl")
    assert "8 scored" in line
    (found,) = at_scale.compare_paths([str(a), str(b)], ["grey"], None)
    assert found.startswith(f"grey: {b} beats {a} in 100.0%")
    with pytest.raises(ValueError, match="needs two folders"):
        at_scale.compare_paths([str(a)], ["grey"], None)
    with pytest.raises(FileExistsError, match="not overwritten"):
        at_scale.score_to_file([str(a)], ["grey"], None, tmp_path / "out.jsonl", processes=2)


class Served(Grey):
    """Stands for a reward server: gives no answer to what is in ``gone``, and stumbles over ``faulty``."""

    def __init__(self, gone: Sequence[int] = (), faulty: Sequence[int] = ()) -> None:
        super().__init__()
        self.gone, self.faulty = gone, faulty

    def details(self, x01: Tensor, prompts: Sequence[str]) -> Details:
        levels = [round(float(x.mean()) * 25.5) for x in x01]
        words = [LOST + "no route" if n in self.gone else FAULT if n in self.faulty else "ok" for n in levels]
        score = self.score_tensor(x01, prompts)
        score[[word != "ok" for word in words]] = float("nan")
        return Details(score=score, status=words)


def test_pictures_that_a_server_lost_are_asked_again(tmp_path: Path) -> None:
    items, out = pictures([folder(tmp_path / "a")]), tmp_path / "out.jsonl"
    with pytest.raises(RemoteError, match=r"2 pictures got no answer \(no route\).*the same command again"):
        score_many(items, [judge(Served(gone=(3, 9)))], out, batch=4)
    assert not out.exists()
    scorer = Served()
    found = score_many(items, [judge(scorer)], out, batch=4)
    assert (found.made, found.kept, scorer.seen) == (2, 18, 2)
    assert [row["grey"] for row in rows(out)] == pytest.approx([10 * i / 255 for i in range(20)])


def test_a_server_that_is_gone_stops_the_run_at_once(tmp_path: Path) -> None:
    items, scorer = pictures([folder(tmp_path / "a")]), Served(gone=range(4, 20))
    with pytest.raises(RemoteError, match="4 pictures got no answer"):
        score_many(items, [judge(scorer)], tmp_path / "out.jsonl", batch=4)
    assert scorer.seen == 8
    assert score_many(items, [judge()], tmp_path / "out.jsonl").kept == 4


def test_what_a_server_stumbled_over_is_tried_again_where_a_run_goes_on(tmp_path: Path) -> None:
    items, out = pictures([folder(tmp_path / "a", 8)]), tmp_path / "out.jsonl"
    with pytest.raises(RemoteError):
        score_many(items, [judge(Served(gone=(4, 5, 6, 7), faulty=(1,)))], out, batch=4)
    scorer = Served(faulty=(1, 2))
    found = score_many(items, [judge(scorer)], out, batch=4)
    assert (found.made, found.kept, found.failed) == (5, 3, 1)
    assert [row["grey"] is None for row in rows(out)] == [False, True] + [False] * 6


def test_a_strip_is_a_status_of_its_own(tmp_path: Path) -> None:
    from scorers.preprocess import Preprocess

    class Cropped(Grey):
        preprocess = Preprocess(size=224)

        def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
            return self.preprocess(x01).mean((1, 2, 3))

    root = folder(tmp_path / "a", 2)
    (root / "strip.png").write_bytes(png(100, (5000, 1)))
    for name, judges in (
        ("one", [judge(Cropped())]),
        ("two", [judge(Cropped()), Judge(name="b", scorer=Grey(), id="2")]),
    ):
        score_many(pictures([root]), judges, tmp_path / f"{name}.jsonl")
        found = rows(tmp_path / f"{name}.jsonl")
        assert [row["grey"] is None for row in found] == [False, False, True]
        assert "1 x 5000 pixels is a strip" in str(found[2]["grey.status"])


def test_a_process_that_finds_the_parts_gone_is_done(tmp_path: Path) -> None:
    items, out = pictures([folder(tmp_path / "a", 4)]), tmp_path / "out.jsonl"
    slow = Parts(tmp_path / "out.jsonl.parts", _plan(items, [judge()]))
    score_many(items, [judge()], out)  # writes the output and deletes the parts
    assert slow.finish(items, out) == out
    out.unlink()
    with pytest.raises(FileNotFoundError):
        slow.finish(items, out)
