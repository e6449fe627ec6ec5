"""The page of the online league: rewards kept with results, wins asked for, a picture to read."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from diffalign.league.config import Job, League, main_jobs, read_league
from diffalign.league.labelling import Box, apart, beside
from diffalign.league.page import COLUMNS, LEAGUE_COLUMNS, write_page
from diffalign.league.picture_online import Ink, curve, inks_of, place
from diffalign.league.play import all_valid, digest, result_of, reward_curve
from diffalign.league.results import Result, Row, load_results, restore, save_result
from diffalign.train.run import RunFolder
from tests.league.test_league import BASE

FILE = """
common: {steps: 3, policy: {model: samples/shapes/unet}, rewards: [{scorer: mine}]}
pipelines: {unet: {}}
methods:
  base: {recipe: {objective: {name: nft}, steps: 1}}
  nft: {recipe: {objective: {name: nft}}}
  grpo: {recipe: {objective: {name: grpo}}}
  pref_grpo: {recipe: {objective: {name: grpo}, rewards: [{scorer: mine, among: group}]}}
families: {the forward process: [nft], GRPO: [grpo, pref_grpo]}
seeds: [0]
columns: [0.7 of wins]
draw: online
"""
REWARDS = (1.0, 2.123456, None)


@pytest.fixture
def league(tmp_path: Path) -> League:
    (tmp_path / "league_online.yaml").write_text(FILE)
    return read_league(tmp_path / "league_online.yaml")


def jobs_of(league: League) -> dict[str, Job]:
    return {j.method: j for j in main_jobs(league, {("unet", name): {} for name in league.methods})}


def lines_of(rewards: Sequence[float | None]) -> list[dict[str, Any]]:
    """Metrics as a run writes them; those of a judge of candidates come first."""
    return [
        {"step": i, "judge/lrm": 9.0, "reward/mine": value, "reward/other": 5.0, "pictures": 32.0}
        | {"timing": {"seconds": 2.0}}
        for i, value in enumerate(rewards, 1)
    ]


def result(job: Job, **changes: Any) -> Result:
    return replace(
        BASE, job=job.name, kind=job.kind, method=job.method, seed=job.seed, digest=digest(job),
        **({"steps": 3, "pictures": 96} | changes),
    )  # fmt: skip


def put(root: Path, made: Result, *, old: bool = False, metrics: Sequence[float | None] = ()) -> None:
    """A run's folder, as it was before rewards were kept with the result, or as it is now."""
    folder = root / made.job
    folder.mkdir(parents=True)
    save_result(folder, made)
    if old:
        content = asdict(made)
        del content["rewards"]
        (folder / "league.json").write_text(json.dumps(content))
    if metrics:
        text = "".join(json.dumps(line) + "\n" for line in lines_of(metrics))
        (folder / "metrics.jsonl").write_text(text)


def test_a_run_keeps_the_trained_reward_of_every_iteration(league: League, tmp_path: Path) -> None:
    job = jobs_of(league)["nft"]
    put(tmp_path, result(job), metrics=REWARDS)
    compared = {"metric": "j", "mean_gain_sd": 1, "win_rate": 1, "ci_low": 1, "ci_high": 1}
    report = {
        "comparisons": [compared],
        "obedience": {"base": 1, "model": 1},
        "diversity": {"base": {"vendi": 1}, "model": {"vendi": 1}},
    }
    found = result_of(job, report, [RunFolder(root=tmp_path / job.name)], "")  # type: ignore[arg-type]
    assert found.rewards == (1.0, 2.123, None)  # four digits
    assert (found.pictures, found.reward_first, found.reward_last) == (96, 1.0, 2.123456)


def test_win_rates_within_a_prompt_have_no_course(league: League) -> None:
    jobs, lines = jobs_of(league), lines_of((0.5, 0.5))
    assert reward_curve(jobs["pref_grpo"], lines) == ()
    assert reward_curve(jobs["grpo"], lines) == (0.5, 0.5)
    assert reward_curve(jobs["grpo"], []) == ()
    offline = replace(jobs["grpo"], recipe={"objective": {"name": "dpo"}})
    assert reward_curve(offline, [{"step": 1, "loss": 0.7}]) == ()


def test_an_old_result_counts_and_takes_rewards_from_its_metrics(league: League, tmp_path: Path) -> None:
    jobs = jobs_of(league)
    put(tmp_path, result(jobs["nft"]), old=True, metrics=REWARDS)
    put(tmp_path, result(jobs["grpo"]), old=True)
    before = (tmp_path / jobs["nft"].name / "league.json").read_text()
    found = {r.method: r for r in all_valid(league, tmp_path).values()}
    assert found["nft"].rewards == (1.0, 2.123, None)
    assert found["grpo"] == result(jobs["grpo"]), "its metrics are gone"
    assert (tmp_path / jobs["nft"].name / "league.json").read_text() == before
    put(tmp_path, result(jobs["pref_grpo"], rewards=(7.0,)), metrics=REWARDS)
    assert all_valid(league, tmp_path)[jobs["pref_grpo"].name].rewards == (7.0,), "what is known stays"


@pytest.mark.slow
def test_a_new_checkout_has_what_the_picture_shows(league: League, tmp_path: Path) -> None:
    jobs = jobs_of(league)
    put(tmp_path / "here", result(jobs["nft"]), old=True, metrics=(1.0, 2.0, 4.0))
    put(tmp_path / "here", result(jobs["grpo"], rewards=(2.0, None, 3.0)))
    here = all_valid(league, tmp_path / "here")
    write_page(league, here, tmp_path / "docs", "league_online")
    restore(tmp_path / "docs" / "league_online.json", tmp_path / "there")
    assert load_results(tmp_path / "there") == here
    assert all_valid(league, tmp_path / "there") == here
    picture = (tmp_path / "docs" / "league_online.png").read_bytes()
    assert len(picture) > 10_000
    changed = {n: replace(r, rewards=(3.0, 2.0, 1.0)) for n, r in here.items()}
    write_page(league, changed, tmp_path / "changed", "league_online")
    assert (tmp_path / "changed" / "league_online.png").read_bytes() != picture, "rewards are drawn"


def test_the_base_alone_gives_nothing_to_draw(league: League, tmp_path: Path) -> None:
    base = result(jobs_of(league)["base"], steps=1, rewards=(1.0,))
    write_page(league, {base.job: base}, tmp_path, "league_online")
    assert not (tmp_path / "league_online.png").exists()
    text = (tmp_path / "league_online.md").read_text()
    assert "png" not in text
    assert "| `base` | yes |" in text  # 0.7, of which the interval starts at 0.6


@pytest.mark.parametrize(
    ("rates", "lows", "said"),
    [
        ((0.8, 0.6), (0.7, 0.5), "yes"),  # the mean is what counts, and 0.7 is enough
        ((0.8, 0.9), (0.6, 0.8), "yes, all of its interval"),
        ((0.9, 0.49), (0.85, 0.4), "no"),
    ],
)
def test_the_table_says_whether_enough_is_won(
    rates: tuple[float, float], lows: tuple[float, float], said: str
) -> None:
    runs = tuple(replace(BASE, win_rate=w, ci_low=c) for w, c in zip(rates, lows, strict=True))
    assert COLUMNS["0.7 of wins"](Row(method="nft", pipeline="unet", known=True, runs=runs)) == said
    assert "0.7 of wins" not in LEAGUE_COLUMNS


def row(*rewards: tuple[float | None, ...], pictures: int = 0, **changes: Any) -> Row:
    runs = tuple(replace(BASE, rewards=r, steps=len(r), pictures=pictures, **changes) for r in rewards)
    return Row(method="nft", pipeline="unet", known=True, runs=runs)


def test_a_line_is_the_mean_of_seeds_and_of_five_iterations() -> None:
    first, second = (1.0, 2.0, 3.0, 4.0, 5.0, 12.0), (3.0, 4.0, 5.0, 6.0, 7.0, 14.0)
    xs, ys = curve(row(first, second, pictures=192))
    assert xs == pytest.approx([3 * 32, 4 * 32])
    assert ys == pytest.approx([4.0, 6.2])
    assert curve(row(first, (), pictures=192))[1] == pytest.approx([3.0, 5.2])  # that seed alone is known
    assert curve(row((1.0, None, 3.0), pictures=96)) == ([64.0], [2.0])  # as many as there are
    assert curve(row((None, None), pictures=64)) == curve(row(())) == ([], [])


def test_points_are_where_the_table_says() -> None:
    runs = tuple(replace(BASE, seconds=s, win_rate=w) for s, w in ((10.0, 0.6), (12.0, 0.7), (90.0, 0.8)))
    seconds, wins = place(Row(method="nft", pipeline="unet", known=True, runs=runs))
    assert (seconds, wins) == (12.0, pytest.approx(0.7))


def test_methods_can_be_told_apart() -> None:
    league = read_league(Path("training/league_online.yaml"))
    kinds = list(itertools.chain(*league.families.values()))
    assert sorted(["base", *kinds]) == sorted(league.methods), "each learner has one family"
    inks = list(inks_of(league.families).values())
    for a, b in itertools.combinations(inks, 2):
        far = max(abs(x - y) for x, y in zip(a.colour, b.colour, strict=True))
        assert far > 0.15 or a.style != b.style
        assert far > 0.04
    assert max(max(ink.colour) for ink in inks) <= 0.95
    assert isinstance(Ink().colour, str)


def test_names_at_the_ends_of_lines_move_as_little_as_possible() -> None:
    assert apart([5.0, 1.0, 1.0], 2.0) == pytest.approx([5.0, 0.0, 2.0])
    assert apart([0.0, 0.1, 1.0], 1.0) == pytest.approx([-1.9 / 3, 1.1 / 3, 4.1 / 3])
    assert apart([3.0, -4.0], 1.0) == [3.0, -4.0]
    assert apart([], 1.0) == []


def test_names_of_points_cover_neither_points_nor_each_other() -> None:
    points = [(50.0 + 9 * i, 50.0 + 4 * (i % 3)) for i in range(8)] + [(197.0, 99.0)]
    taken = [Box.around(x, y, 6, 6) for x, y in points]
    inside = Box(left=0, bottom=0, right=200, top=100)
    boxes = beside(points, [(30.0, 8.0)] * len(points), inside, taken, 4.0)
    for a, b in itertools.combinations(boxes, 2):
        assert a.shared(b) == 0
    assert all(box.shared(inside) == pytest.approx(box.area) for box in boxes)
    assert all(box.shared(point) == 0 for box, point in itertools.product(boxes, taken))
    assert boxes[-1].right < 197, "on the left, since the right is outside"


def test_boxes_that_touch_share_nothing() -> None:
    box = Box.around(0, 0, 2, 4)
    assert (box.left, box.top, box.area, box.centre) == (-1, 2, 8, (0, 0))
    assert box.shared(Box.around(2, 0, 2, 4)) == box.shared(Box.around(9, 0, 2, 4)) == 0
    assert box.shared(Box.around(1, 1, 2, 4)) == 3


def test_a_family_of_nobody_is_refused(tmp_path: Path) -> None:
    (tmp_path / "league.yaml").write_text(FILE.replace("[nft]", "[ntf]"))
    with pytest.raises(ValueError, match=r"families names 'ntf'; there are base, nft, grpo"):
        read_league(tmp_path / "league.yaml")
