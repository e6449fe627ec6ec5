"""Pictures for a few people beside base and model: in validation, in a run's gallery, and once more later."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffalign.data.records import DataError
from diffalign.evaluate.judge import Evaluation, Judge
from diffalign.train.again import gallery_again
from diffalign.train.align import align, load_recipe
from tests.train.people_runs import directed, named, robust, scored
from tests.train.runs import Brightness

JUDGE = "tests.train.runs:Brightness"
SHOWN = {
    "evaluate": {"prompts": 2, "seeds": 2, "steps": 1, "judges": [JUDGE]},
    "validate": {"every": 2, "prompts": 2, "seeds": 2},
    "steps": 2, "ema": 0,
}  # fmt: skip


def test_further_columns_stand_in_the_gallery_and_not_in_the_report() -> None:
    noise = (torch.rand(2, 2, 3, 8, 8) * 255).byte()
    judge = Judge(name="brightness", scorer=Brightness(), held_out=True)
    prompts = ["a", "b"]
    scores = {"brightness": (judge.score(noise, prompts), judge.score(noise, prompts))}
    evaluation = Evaluation(
        prompts=prompts, base_name="base", model_name="aligned", base=noise, model=noise, judges=[judge],
        scores=scores,
    )  # fmt: skip
    found = evaluation.beside({"anna": 255 - noise}).items()[1]
    assert list(found.images) == ["base", "aligned", "anna"]
    own = judge.score(255 - noise, prompts)[1].tolist()
    assert found.scores["brightness"]["anna"] == pytest.approx(own)
    assert [row["model"] for row in evaluation.beside({"anna": noise}).report()["comparisons"]] == ["aligned"]


def test_strangers_and_doubled_columns_are_refused(tmp_path: Path) -> None:
    options = robust(tmp_path, tmp_path / "run")
    people = options["people"]
    with pytest.raises(ValueError, match="'base' would name two columns"):
        load_recipe(options | {"people": people | {"show": ["base"]}})
    with pytest.raises(ValueError, match="'anna' would name two columns"):
        load_recipe(options | {"people": people | {"show": ["anna", "anna"]}})
    other = directed(tmp_path, tmp_path / "run")
    with pytest.raises(ValueError, match="does not name one of dark, large"):
        load_recipe(other | {"people": other["people"] | {"show": ["warm=1"]}})
    with pytest.raises(DataError, match="names 'dora', who has judged nothing"):
        align(options | {"people": people | {"show": ["dora"]}}, records=named())


@pytest.mark.slow
def test_people_are_columns_of_validation_and_gallery(tmp_path: Path) -> None:
    for make, data, shown in (
        (robust, named(), ["anna", "ben"]),
        (directed, scored(), ["dark=1", "dark=1,large=1"]),
    ):
        options = make(tmp_path, tmp_path / make.__name__, **SHOWN)
        options["people"] = options["people"] | {"show": shown}
        run = align(options, records=data)
        sheet = Image.open(run.dir / "samples" / "step-000002.png")
        assert sheet.width == sheet.height * 4, "two prompts in rows, four columns of two seeds"
        first, second = (run.dir / name for name in ("gallery.html", "again.html"))
        gallery_again(run.dir, second, 2)
        for page in (first, second):
            text = page.read_text(encoding="utf-8")
            assert '["base","aligned",' in text.replace('", "', '","')
            assert all(name in text for name in shown)
