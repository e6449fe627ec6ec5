"""Columns of an evaluation for people: how they are named, told apart, and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffalign.evaluate.asked import Asked
from diffalign.evaluate.models import Model, ModelError, People, identity, with_people
from diffalign.evaluate.request import Request
from diffalign.evaluate.results import models_of, read_rows
from diffalign.evaluate.run import evaluate_models, request_of
from diffalign.personalize.users import UsersError
from tests.personalize.helpers import saved
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    folder = tmp_path_factory.mktemp("people")
    model = Model(name="base", path=tiny_folder("sd", folder / "models"), kind="pipeline")
    return model, saved("sd", folder / "users")


def test_each_person_is_a_model_of_their_own(tiny: tuple[Model, Path]) -> None:
    base, folder = tiny
    asked = People(user=("anna", "anna:0.5,ben:0.5"), users=str(folder), user_scale=0.5)
    found = with_people([base], asked)
    assert [m.name for m in found] == ["base", "anna", "anna-0.5-ben-0.5"]
    assert (found[1].user, found[1].user_scale, found[1].people) == ("anna", 0.5, str(folder))
    other = with_people([base], People(user=("anna",), users=str(folder)))[1]
    digests = {identity(m, base) for m in (*found, other)}
    assert len(digests) == 4, "who and how strongly decide the pictures"


@pytest.mark.parametrize(
    ("people", "error", "message"),
    [
        ({"user": ("dora",)}, UsersError, "nobody is stored as"),
        ({"user": ("anna", "anna")}, ModelError, "two columns would be called 'anna'"),
        ({"direction": ("hps=1",)}, ValueError, "knows people and no directions"),
        ({"user_scale": 2.0}, ModelError, "nobody is named"),
        ({"user": ("anna",), "users": "nowhere"}, FileNotFoundError, "nowhere holds no user adapter"),
    ],
)
def test_who_cannot_be_drawn_is_refused(
    people: dict[str, object], error: type[Exception], message: str, tiny: tuple[Model, Path]
) -> None:
    base, folder = tiny
    with pytest.raises(error, match=message):
        with_people([base], People(**{"users": str(folder), **people}))


@pytest.mark.slow
def test_people_stand_side_by_side_in_an_evaluation(tiny: tuple[Model, Path], tmp_path: Path) -> None:
    base, folder = tiny
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue star\n")
    asked = Asked(
        models=(base.path, f"again={base.path}"), prompts=str(prompts), part="all", steps=1, seeds=2,
        scorers=("tests.train.runs:Brightness",), output=tmp_path / "out",
        people=People(user=("anna", "ben"), users=str(folder)),
    )  # fmt: skip
    request, _ = request_of(asked)
    assert Request.of_json(request.to_json()) == request
    evaluate_models(asked)
    rows = read_rows(tmp_path / "out")
    assert models_of(rows) == ["base", "again", "anna", "ben"]
    of = {(r.model, r.prompt, r.seed): r.sha256 for r in rows}
    assert of["base", "a red circle", 0] == of["again", "a red circle", 0] != of["anna", "a red circle", 0]
    assert of["anna", "a red circle", 0] != of["ben", "a red circle", 0]
    assert "anna" in (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
