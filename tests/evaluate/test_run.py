"""``diffalign evaluate BASE ALIGNED``: the same whatever stops or shares its work; clear when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from diffalign.evaluate import draw as drawing
from diffalign.evaluate import run as running
from diffalign.evaluate.asked import Asked
from diffalign.evaluate.contamination import ContaminationError, check_prompts
from diffalign.evaluate.generate import picture_seed
from diffalign.evaluate.grids import grids
from diffalign.evaluate.measure import MeasureError
from diffalign.evaluate.models import Model, ModelError, digest, read_models
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.report import ReportError, load_report
from diffalign.evaluate.request import RequestError, claimed, settle
from diffalign.evaluate.results import Row, models_of, read_rows
from diffalign.evaluate.run import evaluate_models, lone_run, request_of
from diffalign.evaluate.work import work_share
from diffalign.label.many import Share
from diffalign.policy import load_policy
from diffalign.policy.export import export_policy
from diffalign.votes.rows import Shown, Vote, to_lines
from scorers.registry import RegistryError
from tests.tiny import tiny_folder

BRIGHT, RED = "tests.evaluate.toy:Brightness", "tests.evaluate.toy:Redness"
PROMPTS = "prompt,category\na red circle,one\na blue square,one\na green star,two\na pink ring,two\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, a LoRA for it, prompts, and a finished evaluation in ``done``."""
    home = tmp_path_factory.mktemp("evaluate")
    folder = tiny_folder("sd", home)
    policy = load_policy(folder, {"rank": 2})
    torch.manual_seed(1)
    for weight in policy.trainable().values():
        weight.data += 0.3 * torch.randn_like(weight)
    export_policy(policy, home / "brighter" / "export")
    (home / "prompts.csv").write_text(PROMPTS)
    evaluate_models(asked(home, home / "done"))
    return home


@pytest.fixture(autouse=True)
def _no_plots(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffalign.evaluate.output.write_plots", lambda *args: [])


def asked(home: Path, output: Path) -> Asked:
    return Asked(
        models=(str(home / "sd"), str(home / "brighter" / "export")), prompts=str(home / "prompts.csv"),
        scorers=(BRIGHT, RED), seeds=2, steps=2, part="all", output=output, batch=4,
    )  # fmt: skip


def pictures(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*.png"))
        if f.parent.name != "plots"
    }


def test_writes_results_report_and_plots(home: Path) -> None:
    rows = read_rows(home / "done")
    assert models_of(rows) == ["base", "brighter"]
    assert len(rows) == 2 * 4 * 2
    assert rows[0].path == f"base/{rows[0].prompt_id}/0.png"
    assert set(rows[0].scores) == {BRIGHT, RED}
    assert {row.category for row in rows} == {"one", "two"}
    picture = drawing.load([home / "done" / rows[0].path]).float() / 255
    assert rows[0].scores[BRIGHT] == pytest.approx(float(picture.mean()), abs=1e-6)
    report = load_report(home / "done" / "report.json")
    assert [row["metric"] for row in report["comparisons"]] == [BRIGHT, RED]
    assert (report["prompts"], report["seeds_per_prompt"]) == (4, 2)
    assert set(report["diversity"]) == {"base", "brighter"}
    details = report["details"]
    assert details["settings"]["steps"] == 2
    assert details["settings"]["sampler"] == "DDIMScheduler"
    assert [m["metric"] for m in details["metrics"]] == [BRIGHT, RED]
    assert set(details["categories"]["brighter"]) == {"one", "two"}
    text = (home / "done" / "report.md").read_text()
    assert "plots/win_rates.png" in text
    assert (home / "done" / "plots" / "gains.png").stat().st_size > 1000


def test_nothing_is_made_or_scored_twice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: (home / "done" / name).read_text() for name in ("results.jsonl", "report.json")}

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(drawing, "open_model", fail)
    monkeypatch.setattr("diffalign.evaluate.measure._measured", fail)
    evaluate_models(asked(home, home / "done"))
    assert before == {name: (home / "done" / name).read_text() for name in before}


@pytest.mark.slow
def test_shares_and_stops_change_no_bit(home: Path, tmp_path: Path) -> None:
    request, _ = request_of(asked(home, tmp_path / "shared"))
    with claimed(request.output):
        settle(request)
        work_share(request, Share(rank=1, world=2))
    lost = sorted(request.output.rglob("1.png"))[0]
    lost.unlink()  # as if it had not come so far
    scores = next((request.output / "scores").rglob("*.jsonl"))
    scores.write_text(scores.read_text()[:-20])  # a line that was cut off
    evaluate_models(asked(home, request.output))
    assert pictures(request.output) == pictures(home / "done")
    rows = (request.output / "results.jsonl").read_text()
    assert rows == (home / "done" / "results.jsonl").read_text()


def test_other_settings_are_named(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "done"
    shutil.copytree(home / "done", folder)  # a further model will be added
    with pytest.raises(RequestError, match=r"steps was 2 and is 3"):
        evaluate_models(replace(asked(home, folder), steps=3))
    other = tmp_path / "export"
    shutil.copytree(home / "brighter" / "export", other)
    policy = load_policy(str(home / "sd"), {"rank": 2})
    export_policy(policy, other)
    changed = replace(asked(home, folder), models=(str(home / "sd"), f"brighter={other}"))
    with pytest.raises(RequestError, match="the weights of brighter"):
        evaluate_models(changed)
    more = replace(asked(home, folder), models=(str(home / "sd"), f"another={other}"), limit=2)
    assert len(read_rows(evaluated(more))) == 2 * 2 * 2  # the same pictures of the base, and a further model
    evaluate_models(asked(home, folder))


def evaluated(asked: Asked) -> Path:
    evaluate_models(asked)
    return asked.output


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"models": ()}, RequestError, "name the base"),
        ({"prompts": ""}, RequestError, "--prompts is missing"),
        ({"part": "some"}, RequestError, "report, select or all"),
        ({"seeds": 1}, RequestError, "1 seed shows no spread"),
        ({"scorers": ()}, RequestError, "no held-out scorer"),
        ({"scorers": (BRIGHT, BRIGHT)}, RequestError, "named twice"),
        ({"trained_on": (BRIGHT,)}, RequestError, "named twice"),
        ({"primary": "hps"}, RequestError, "none of --scorers"),
        ({"noise": "some"}, RequestError, "own or shared"),
        ({"limit": 1}, RequestError, "at least 2"),
        ({"scorers": ("shapes-larg",)}, RegistryError, "shapes-large"),
        ({"models": ("nowhere", "else")}, FileNotFoundError, "no model at 'nowhere'"),
    ],
)
def test_what_cannot_be_asked(
    home: Path, tmp_path: Path, change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate_models(replace(asked(home, tmp_path / "out"), **change))
    assert not (tmp_path / "out").exists()


def test_scores_that_are_not_finite_are_named_and_nothing_is_reported(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "done", tmp_path / "done")
    (tmp_path / "done" / "report.json").unlink()
    (tmp_path / "done" / "results.jsonl").unlink()
    with pytest.raises(MeasureError, match="Broken gives nan for seed 1 of 'a "):
        evaluate_models(replace(asked(home, tmp_path / "done"), scorers=("tests.evaluate.toy:Broken",)))
    assert not (tmp_path / "done" / "report.json").exists()
    assert not (tmp_path / "done" / "results.jsonl").exists()


def test_a_folder_of_others_is_left_alone(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RequestError, match="holds other files"):
        evaluate_models(asked(home, tmp_path))
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_two_evaluations_do_not_share_a_folder(home: Path, tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out"),
        pytest.raises(BlockingIOError, match="another evaluation"),
        claimed(tmp_path / "out"),
    ):
        pass


def test_prompts_that_were_trained_on(home: Path, tmp_path: Path) -> None:
    (tmp_path / "used.txt").write_text("A  red circle\nsomething else\n")
    question = replace(asked(home, tmp_path / "out"), used=(tmp_path / "used.txt",))
    with pytest.raises(ContaminationError, match=r"1 of 4 prompts .*'a red circle'"):
        evaluate_models(question)
    _, notes = request_of(replace(question, allow_contaminated=True))
    assert len(notes) == 1


def test_training_prompts_of_a_run(tmp_path: Path) -> None:
    prompts = [EvalPrompt(prompt=p) for p in ("nothing of the sort", "new")]
    run = Model(name="mine", path=str(tmp_path / "run"), kind="run")
    (tmp_path / "run").mkdir()
    recipe = "policy: {model: samples/shapes/unet}\nobjective: {name: dpo}\ndata: {path: %s}\n"
    (tmp_path / "run" / "config.yaml").write_text(recipe % (tmp_path / "data"))
    with pytest.raises(ContaminationError, match=r"not at .* any more"):
        check_prompts(prompts, [run], [], False)
    assert "unknown" in check_prompts(prompts, [run], [], True)[0]
    shutil.copytree(Path(__file__).parents[2] / "samples" / "preferences" / "folder", tmp_path / "data")
    assert check_prompts(prompts, [run], [], False) == []
    (tmp_path / "data" / "used_prompts.txt").write_text("New\n")
    with pytest.raises(ContaminationError, match=r"1 of 2 prompts .*\(mine; 'new'"):
        check_prompts(prompts, [run], [], False)


def test_a_run_alone_takes_its_recipe_only(home: Path) -> None:
    alone = Asked(models=("outputs/run",), prompts="20", seeds=2)
    assert lone_run(alone) == Path("outputs/run")
    assert lone_run(asked(home, home)) is None
    assert lone_run(replace(alone, prompts="prompts.txt")) is None
    with pytest.raises(RequestError, match="as its recipe says"):
        lone_run(replace(alone, steps=30))


def test_models_are_named(home: Path) -> None:
    base, lora = str(home / "sd"), str(home / "brighter" / "export")
    assert [(m.name, m.kind) for m in read_models([base, lora])] == [
        ("base", "pipeline"),
        ("brighter", "lora"),
    ]
    assert read_models([f"old={base}", f"new={lora}/pytorch_lora_weights.safetensors"])[1].kind == "lora"
    with pytest.raises(ModelError, match="called 'brighter'"):
        read_models([base, lora, lora])
    with pytest.raises(ModelError, match="is a LoRA"):
        read_models([lora, base])
    with pytest.raises(ModelError, match="cannot name a model"):
        read_models([base, f"a/b={lora}"])
    with pytest.raises(ModelError, match="two models"):
        read_models([base])


def test_digest_sees_bytes_and_names(tmp_path: Path) -> None:
    found = []
    for name, content in (("a", "1"), ("a", "2"), ("b", "2")):
        folder = tmp_path / f"{name}{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        (folder / "README.md").write_text(str(len(found)))
        found.append(digest(str(folder)))
    assert len(set(found)) == 3
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "a").write_text("1")
    assert digest(str(tmp_path / "same")) == found[0]


def test_pictures_of_another_size_are_refused(home: Path, tmp_path: Path) -> None:
    request, _ = request_of(asked(home, tmp_path / "out"))
    prompt = request.prompts[0].prompt
    drawing.save(request.picture("base", prompt, 0), torch.zeros(3, 8, 8, dtype=torch.uint8))
    drawing.save(request.picture("base", prompt, 1), torch.zeros(3, 8, 16, dtype=torch.uint8))
    with pytest.raises(ModelError, match="must be alike"):
        drawing.load([request.picture("base", prompt, s) for s in (0, 1)])


def test_a_part_by_hash(home: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"prompt {i}\n" for i in range(50)))
    question = replace(asked(home, home), prompts=str(tmp_path / "many.txt"))
    parts = {
        n: {p.prompt for p in running.prompts_of(replace(question, part=n))} for n in ("report", "select")
    }
    assert parts["report"] | parts["select"] == {f"prompt {i}" for i in range(50)}
    assert not parts["report"] & parts["select"]
    assert len(parts["report"]) > len(parts["select"]) > 0


def test_shared_noise_is_the_seed_itself(home: Path) -> None:
    assert picture_seed("a", 3, "shared") == picture_seed("b", 3, "shared") == 3
    assert picture_seed("a", 3) != picture_seed("b", 3)
    with pytest.raises(RequestError, match="noise was own and is shared"):
        evaluate_models(replace(asked(home, home / "done"), noise="shared"))


def test_settings_are_kept(home: Path) -> None:
    kept = json.loads((home / "done" / "settings.json").read_text())
    assert kept["sampling"]["steps"] == 2
    assert kept["models"]["base"]["weights"] == digest(str(home / "sd"))
    assert np.isfinite([r.scores[BRIGHT] for r in read_rows(home / "done")]).all()


def test_the_primary_is_held_out(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "done", tmp_path / "done")
    question = replace(asked(home, tmp_path / "done"), scorers=(RED,), trained_on=(BRIGHT,))
    report = evaluate_models(question).report
    assert [(r["metric"], r["held_out"]) for r in report["comparisons"]] == [(RED, True), (BRIGHT, False)]
    assert report["details"]["metrics"][1]["p_holm"] is None
    with pytest.raises((ReportError, RequestError), match="primary"):
        evaluate_models(replace(question, primary=BRIGHT))


@pytest.mark.slow
def test_everything_at_once(home: Path, tmp_path: Path) -> None:
    """Three models, control, votes, shifted noise and paths; a second call makes nothing again."""
    shutil.copytree(home / "done", tmp_path / "done")
    votes = tmp_path / "votes.jsonl"
    votes.write_text(to_lines(votes_on(read_rows(home / "done"))))
    lora = str(home / "brighter" / "export")
    question = replace(
        asked(home, tmp_path / "done"), models=(str(home / "sd"), lora, f"again={lora}"), limit=2,
        control=("saturation",), votes=(votes,), shift=("scale=1.2",), smoothness=3, primary=RED,
    )  # fmt: skip
    details = evaluate_models(question).report["details"]
    assert [row["model"] for row in details["league"]] == ["base", "brighter", "again"]
    assert details["league"][1]["gain"] == details["league"][2]["gain"]
    assert details["metrics"][0]["metric"] == RED
    controlled = [row for row in details["metrics"] if "controlled" in row]
    assert len(controlled) + sum("saturation" in note for note in details["notes"]) == len(details["metrics"])
    assert details["votes"]["models"]["brighter"]["wins"] == 2
    assert {row["metric"] for row in details["calibration"]} == {BRIGHT, RED}
    assert set(details["brittleness"]) == {"base", "brighter", "again"}
    assert details["brittleness"]["brighter"] == details["brittleness"]["again"]
    assert details["smoothness"]["base"]["value"] > 0
    assert details["seeds"]["metric"] == "obedience"
    assert set(details["facets"]["obedience"]["base"]) <= {"objects", "colour", "relation"}
    report = load_report(tmp_path / "done" / "report.json")
    titles = " ".join(grid.title for grid in grids(report))
    for part in ("in detail", "statistics", "primary scorer", "fail by", "right by", "noise", "smoothness"):
        assert part in titles
    assert all(len(row) == len(grid.header) for grid in grids(report) for row in grid.rows)
    text = (tmp_path / "done" / "report.md").read_text()
    assert "nan" not in text
    assert "| again | " in text
    assert "people, 1 raters" in text


def votes_on(rows: list[Row]) -> list[Vote]:
    """Two votes, on the first pictures of the first two prompts of the file: brighter wins."""
    by_place = {(r.model, r.prompt, r.seed): r for r in rows}
    found = []
    for prompt in ("a red circle", "a blue square"):
        a, b = by_place["base", prompt, 0], by_place["brighter", prompt, 0]
        found.append(
            Vote(
                gallery="0" * 64, rater="r", time=datetime(2026, 1, 1, tzinfo=UTC), ms=900,
                prompt_id=a.prompt_id, prompt=prompt, seed=0, left="a", choice="b",
                a=Shown(model=a.model, sha256=a.sha256),
                b=Shown(model=b.model, sha256=b.sha256),
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": ("hue",)}, "'hue' is none of brightness"),
        ({"shift": ("turn=1",)}, "not understood"),
        ({"smoothness": 2}, "3 pictures"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
    ],
)
def test_options_of_studies(home: Path, tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        evaluate_models(replace(asked(home, tmp_path / "out"), **change))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_killed_processes_change_no_bit(home: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of two processes' work, then the same command again."""
    question = asked(home, tmp_path / "out")
    command = [sys.executable, "-c", "from diffalign.cli import main; main()", "evaluate", *question.models]
    command += ["--prompts", question.prompts, "--scorers", f"{BRIGHT},{RED}", "--seeds", "2", "--steps", "2"]
    command += ["--part", "all", "--batch", "4", "--processes", "2", "--output", str(question.output)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL)
    while not list(question.output.rglob("*.png")) and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    some = pictures(question.output)
    assert 0 < len(some) < 16
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert pictures(question.output) == pictures(home / "done")
    assert (question.output / "results.jsonl").read_text() == (home / "done" / "results.jsonl").read_text()
    assert not list(question.output.rglob("*.partial"))
