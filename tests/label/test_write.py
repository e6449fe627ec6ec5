"""One pass over data: what is written, kept from before, left out and refused; the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from diffalign.cli import app
from diffalign.data import BytesImage, DataError, FileImage, Record, read, write
from diffalign.data.derived import read_labelled
from diffalign.label.features import encode, pixel_features
from diffalign.label.formulas import calibrated_reward, win_fraction
from diffalign.label.judges import Judge, load_judge, load_judges
from diffalign.label.options import LabelOptions
from diffalign.label.pool import gathered, of_pictures
from diffalign.label.scoring import ScoreBook, score_records
from diffalign.label.write import derive, write_scores
from scorers.registry import RegistryError
from tests.label.helpers import Channel

HERE = "tests.label.helpers"
runner = CliRunner()


def flat(red: int, green: int, side: int = 8) -> BytesImage:
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = red, green
    pixels[0, 0, 2] = red ^ green  # no two pictures point the same way
    return BytesImage.from_array(pixels, f"red {red} green {green}")


def compared(name: str, *colours: tuple[int, int], kind: str = "ranking", values: Any = None) -> Record:
    return Record(
        prompt=name, images=tuple(flat(*c) for c in colours), kind=kind,  # type: ignore[arg-type]
        values=values or (0.0,) * len(colours), source=name,
    )  # fmt: skip


PAIRS = [
    compared("one", (51, 0), (102, 51), kind="pair", values=(1.0, 0.0)),
    compared("two", (255, 102), (0, 0), kind="pair", values=(1.0, 0.0)),
    compared("one", (204, 0), (0, 204), kind="pair", values=(0.5, 0.5)),
]


def judge(name: str) -> Judge:
    return replace(load_judge(f"{HERE}:{name}"), name=name.lower())


def seen(judge: Judge) -> list[str]:
    assert isinstance(judge.scorer, Channel)
    return judge.scorer.seen


def options(tmp_path: Path, **given: Any) -> LabelOptions:
    return LabelOptions(cache=str(tmp_path / "cache"), **given)


def test_every_image_is_scored_once_by_content_and_kept(tmp_path: Path) -> None:
    red, dark = judge("Red"), judge("Dark")
    first = score_records([*PAIRS, PAIRS[0]], [red, dark], tmp_path, batch=4, features=True)
    assert sorted(seen(red)) == sorted(["one", "one", "two", "two", "one", "one"])
    assert (first.made, first.found) == (12, 4)
    assert first.records[1].judged["red"] == pytest.approx((1.0, 0.0))
    assert all(v <= 0 for r in first.records for v in r.judged["dark"])  # lower is better there
    assert first.keys[0] == first.keys[3]
    assert [f.shape for f in first.features] == [(2, 193)] * 4
    np.testing.assert_allclose(np.linalg.norm(first.features[0], axis=1), 1, rtol=1e-6)
    again = judge("Red")
    second = score_records(PAIRS, [again], tmp_path, features=True)
    assert (seen(again), second.made, second.found) == ([], 0, 6)
    assert second.records[2].judged["red"] == first.records[2].judged["red"]
    np.testing.assert_array_equal(second.features[1], first.features[1])
    green = judge("Green")
    assert score_records(PAIRS, [again, green], tmp_path).made == 6


def test_own_captions_are_what_their_images_are_scored_for(tmp_path: Path) -> None:
    red = judge("Red")
    score_records([replace(PAIRS[0], prompts=("mine", "yours"))], [red], tmp_path)
    assert seen(red) == ["mine", "yours"]


def test_pictures_of_several_sizes_go_together(tmp_path: Path) -> None:
    mixed = Record(prompt="x", images=(flat(255, 0), flat(0, 0, 16)), kind="pair", values=(1.0, 0.0))
    assert score_records([mixed], [judge("Red")], tmp_path).records[0].judged["red"] == (1, 0)


def test_unreadable_images_are_left_out_up_to_their_share(tmp_path: Path) -> None:
    broken = replace(PAIRS[0], images=(FileImage(tmp_path / "no.png"), PAIRS[0].images[1]))
    found = score_records([broken, PAIRS[1]], [judge("Red")], tmp_path, max_bad_share=0.5)
    assert found.places == [1]
    assert "no.png" in found.bad[0][0]
    with pytest.raises(DataError, match="1 of 4 images cannot be read"):
        score_records([broken, PAIRS[1]], [judge("Red")], tmp_path)
    with pytest.raises(DataError, match="no record has only images"):
        score_records([broken], [judge("Red")], tmp_path, max_bad_share=1.0)
    with pytest.raises(DataError, match="no record to score"):
        score_records([], [judge("Red")], tmp_path)


def test_a_book_survives_a_cut(tmp_path: Path) -> None:
    book = ScoreBook(tmp_path / "b.jsonl")
    book.add([("a", 0.1), ("b", 1 / 3)])
    with open(book.file, "a") as file:
        file.write('\n["c", 0.')
    ScoreBook(book.file).add([("d", 2.0)])
    assert ScoreBook(book.file).scores == {"a": 0.1, "b": 1 / 3, "d": 2.0}


def test_judges_are_told_apart_and_checked(tmp_path: Path) -> None:
    assert judge("Red").id != judge("Green").id
    (tmp_path / "w").write_text("1")
    before = load_judge(f"{HERE}:Red={tmp_path / 'w'}").id
    (tmp_path / "w").write_text("2")
    assert load_judge(f"{HERE}:Red={tmp_path / 'w'}").id != before
    for names, message in (
        ([], "no scorer is named"),
        (["x", "x"], "named twice"),
        (["phi"], "name of a label"),
    ):
        with pytest.raises(DataError, match=message):
            load_judges(names)
    with pytest.raises(RegistryError, match="did you mean"):
        load_judges(["pikscore"])
    with pytest.raises(DataError, match="not finite"):
        score_records(PAIRS, [judge("Broken")], tmp_path)
    with pytest.raises(DataError, match="no image features"):
        encode(torch.zeros(1, 3, 8, 8), judge("Red"))
    assert pixel_features(torch.full((1, 3, 8, 8), 0.5)).norm() == 1


def test_a_data_set_gets_labels_beside_it(tmp_path: Path) -> None:
    write(PAIRS, tmp_path / "data", "folder")
    before = (tmp_path / "data" / "metadata.jsonl").read_bytes()
    target, line = write_scores([tmp_path / "data"], [judge("Red"), judge("Green")], options(tmp_path))
    assert target == tmp_path / "data.labels.jsonl"
    assert line == "3 records of 3; 12 scores made, 0 kept from before"
    assert (tmp_path / "data" / "metadata.jsonl").read_bytes() == before
    found = read_labelled(tmp_path / "data", target)
    assert [r.values for r in found] == [r.values for r in PAIRS]
    first = found[0].judged
    assert first["red"] == pytest.approx((0.2, 0.4))
    assert first["smpo"][0] == pytest.approx(1 / (1 + np.exp(0.2)))  # scores of the data go from 0 to 1
    assert first["phi"] == (0, 1)
    assert first["front"] == (2, 1)
    assert found[2].judged["phi"] == (0.5, 0.5)
    assert found[2].judged["front"] == (1, 1)
    assert all(r.distance is not None and r.distance > 0 for r in found)
    with pytest.raises(FileExistsError, match="not overwritten"):
        write_scores([tmp_path / "data"], [judge("Red")], options(tmp_path))


def test_siblings_are_all_images_of_a_prompt(tmp_path: Path) -> None:
    write(PAIRS, tmp_path / "data", "folder")
    judges = [judge("Red"), judge("Green")]
    given = options(tmp_path, siblings="prompt", calibration="raw", low=-1.0, high=1.0)
    target, _ = write_scores([tmp_path / "data"], judges, given, output=tmp_path / "x.jsonl")
    found = read_labelled(tmp_path / "data", target)
    table = np.array([[0.2, 0.4, 0.8, 0.0], [0.0, 0.2, 0.0, 0.8]])
    phi = [v for r in (found[0], found[2]) for v in r.judged["phi"]]
    calibrated = [v for r in (found[0], found[2]) for v in r.judged["calibrated"]]
    np.testing.assert_allclose(phi, win_fraction(table))
    np.testing.assert_allclose(calibrated, calibrated_reward(table, np.ones(2)), rtol=1e-5)
    assert found[0].judged["smpo"][0] == pytest.approx(1 / (1 + np.exp(0.1)))


def test_likes_are_ranked_within_their_prompt_or_refused(tmp_path: Path) -> None:
    likes = [compared(n, c, kind="labels", values=(v,)) for n, c, v in
             (("a", (10, 0), 1.0), ("a", (20, 0), 0.0), ("b", (10, 5), 1.0))]  # fmt: skip
    write(likes, tmp_path / "data", "folder")
    with pytest.raises(
        DataError, match="ranking of one item; compare the images of a prompt with siblings=prompt"
    ):
        write_scores([tmp_path / "data"], [judge("Red")], options(tmp_path))
    write(likes[:2], tmp_path / "two", "folder")
    target, _ = write_scores([tmp_path / "two"], [judge("Red")], options(tmp_path, siblings="prompt"))
    assert [r.judged["phi"] for r in read_labelled(tmp_path / "two", target)] == [(0,), (1,)]


def pool(folder: Path, **colours: tuple[int, int]) -> Path:
    folder.mkdir()
    for name, colour in colours.items():
        (folder / f"{name}.png").write_bytes(flat(*colour).read())
        (folder / f"{name}.txt").write_text(name[0])
    return folder


def test_images_of_several_pipelines_are_paired_by_prompt(tmp_path: Path) -> None:
    one = pool(tmp_path / "one", a0=(10, 5), a1=(200, 10), b0=(30, 0))
    two = pool(tmp_path / "two", a0=(90, 0), b0=(60, 9))
    target, line = write_scores([one, two], [judge("Red")], options(tmp_path), rule="best_worst")
    assert target == tmp_path / "one-best_worst"
    assert line.startswith("2 records of 2")
    found = read(target)
    assert [(r.prompt, r.models) for r in found] == [("a", ("one", "one")), ("b", ("two", "one"))]
    assert found[0].images[0].read() == (one / "a1.png").read_bytes()
    assert found[0].judged["red"] == pytest.approx((200 / 255, 10 / 255))
    assert {"smpo", "phi", "calibrated", "front"} < set(found[0].judged)
    assert found[0].distance is not None
    assert not Path(
        json.loads((target / "metadata.jsonl").read_text().splitlines()[0])["image_0"]
    ).is_absolute()


def test_images_without_a_rule_are_ranked_by_phi(tmp_path: Path) -> None:
    one = pool(tmp_path / "one", a0=(10, 5), a1=(200, 10), a2=(90, 0))
    target, _ = write_scores([one], [judge("Red")], options(tmp_path), output=tmp_path / "ranked")
    (found,) = read(target)
    assert (found.kind, found.values) == ("ranking", (0, 1, 0.5))


def test_pictures_in_memory_are_paired(tmp_path: Path) -> None:
    pictures = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    pictures[:, 2, 0] = 255
    items, scored = derive(
        of_pictures(["a", "b"], pictures), [judge("Red")], options(tmp_path), rule="best_worst"
    )
    assert (len(items), scored.made) == (2, 8)
    assert [(i.of, i.images[0], i.record.prompt) for i in items] == [(0, 2, "a"), (1, 2, "b")]
    with pytest.raises(DataError, match="ranking of one item"):
        of_pictures(["a", "b"], pictures[:, :1])


def test_existing_pairs_are_relabelled(tmp_path: Path) -> None:
    write(PAIRS, tmp_path / "data", "folder")
    target, _ = write_scores([tmp_path / "data"], [judge("Red")], options(tmp_path), rule="relabel")
    found = read_labelled(tmp_path / "data", target)
    assert [r.values for r in found] == [(1, 0)] * 3
    assert found[0].images[0].read() == PAIRS[0].images[1].read()  # the redder one won
    assert found[1].images[0].read() == PAIRS[1].images[0].read()


@pytest.mark.parametrize("rule", ["divpo", "feature_spread", "rejection", "rank_then_sift", "pareto"])
def test_other_rules_run_end_to_end(tmp_path: Path, rule: str) -> None:
    one = pool(tmp_path / "one", **{f"a{i}": (40 * i, 20 * i) for i in range(6)})
    given = options(tmp_path, rule=LabelOptions().rule)
    target, _ = write_scores([one], [judge("Red"), judge("Green")], given, rule=rule)
    for record in read(target):
        assert record.judged["red"][0] > record.judged["red"][1]


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    one = pool(tmp_path / "one", a0=(10, 5), b0=(30, 0), b1=(40, 0))
    with pytest.raises(DataError, match=r"ranking of one item: 1 of 2 prompts have one image only .*'a'"):
        write_scores([one], [judge("Red")], options(tmp_path), rule="best_worst")
    with pytest.raises(RegistryError, match="did you mean 'best_worst'"):
        write_scores([one], [judge("Red")], options(tmp_path), rule="best_wurst")
    write(PAIRS, tmp_path / "data", "folder")
    with pytest.raises(DataError, match="several paths must be folders of images"):
        write_scores([tmp_path / "data", tmp_path / "data"], [judge("Red")], options(tmp_path))
    even = pool(tmp_path / "even", a0=(10, 5), a1=(10, 9), b0=(20, 1), b1=(30, 1))
    given = options(tmp_path, rule=replace(LabelOptions().rule, min_gap=99.0))
    with pytest.raises(DataError, match="rank_then_sift makes no pair of 2 groups"):
        write_scores([even], [judge("Red")], given, rule="rank_then_sift")
    assert not (tmp_path / "even-rank_then_sift").exists()
    merged = gathered([PAIRS[0], PAIRS[2], replace(PAIRS[1], prompt="ONE ")])
    assert [len(r.images) for r in merged] == [6]


def test_the_command_writes_and_says_where(tmp_path: Path) -> None:
    write(PAIRS, tmp_path / "data", "folder")
    base = ["score", str(tmp_path / "data"), "--write", "--scorer", f"{HERE}:Red", f"cache={tmp_path / 'c'}"]
    result = runner.invoke(app, [*base, "siblings=prompt"])
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'data'}.labels.jsonl: 3 records of 3" in result.output
    out = tmp_path / "pairs.jsonl"
    result = runner.invoke(
        app, [*base, "--pairs", "mean_minus_2sd", "--output", str(out), "rule.deviations=1"]
    )
    assert result.exit_code == 0, result.output
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png", "--scorer", f"{HERE}:Red"], "--prompt"),
        (["x.png", "--prompt", "x", "--pairs", "best_worst"], "add --write"),
        (["x.png", "--prompt", "x", "--pairs", "best_worst", "--output", "o.jsonl"], "add --write"),
        (["a", "b", "--compare", "--output", "o.jsonl"], "writes nothing"),
        (["a", "b", "--compare", "--write"], "--write and --compare are different commands"),
        (["data", "--axioms", "--write"], "--axioms and --write are different commands"),
        (["x.png", "--prompt", "x", "--processes", "2"], "give --output"),
        (["x.png", "--prompt", "x", "--scorer", "a", "--scorer", "b", "--weights", "w"], "name=weights"),
        (["x.png", "--prompt", "x", "--scorer", f"{HERE}:Pairwise"], "has no score of one"),
        (["data", "--write", "--prompt", "x"], "have their own prompts"),
        (["data", "--write", "--scorer", "a", "--scorer", "b", "--weights", "w"], "name=weights"),
        (["siblings=prompt", "--write"], "name a data set"),
        (["nowhere", "--write", "--scorer", f"{HERE}:Red"], "no preferences at nowhere"),
        (["data", "--write", "sibling=prompt"], "did you mean 'siblings'?"),
        (["data", "--write", "rule.share=2"], "rule.share is 2"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = runner.invoke(app, ["score", *arguments])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_scorer_without_prompt_needs_none_and_says_why_it_has_no_score(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(flat(255, 51).read())
    arguments = ["score", str(tmp_path / "a.png"), "--scorer", f"{HERE}:Blind"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output == f"too dark\t{tmp_path / 'a.png'}\n"


def test_pictures_are_scored_by_several_scorers(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(flat(255, 51).read())
    arguments = ["score", str(tmp_path / "a.png"), "--prompt", "x", "--scorer", f"{HERE}:Red"]
    result = runner.invoke(app, [*arguments, "--scorer", f"{HERE}:Green"])
    assert result.exit_code == 0, result.output
    assert result.output == f"1.0000\t0.2000\t{tmp_path / 'a.png'}\n"
