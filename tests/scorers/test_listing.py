"""Lists of scorers: what they are, and whether their weights are here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scorers import WEIGHTS_VARIABLE, catalogue
from scorers.listing import lines, list_scorers


def test_all_scorers_say_what_they_are() -> None:
    found = {one.name: one for one in list_scorers()}
    assert list(found) == catalogue.names()
    for one in found.values():
        assert one.kind in ("pointwise", "pairwise", "groupwise", "set"), one.name
        assert one.dims, one.name
        assert one.licence, one.name
        assert not one.problem
        assert one.present or one.weights, one.name
    assert found["shapes-large"].present
    assert not found["hpsv2.1"].present
    assert found["gpm"].kind == "pairwise"


def test_patterns_gradients_and_presence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hpsv2").mkdir()
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    found = {one.name: one.present for one in list_scorers("hpsv2*")}
    assert found == {"hpsv2": True, "hpsv2.1": False}
    assert [one.name for one in list_scorers("jpeg", differentiable=True)] == []
    assert [one.name for one in list_scorers("jpeg", differentiable=False)] == ["jpeg"]
    assert [one.name for one in list_scorers("pareto", differentiable=True)] == []
    first, second = lines(list_scorers("hpsv2*"))
    assert first[-1].startswith("present: HPS_v2_compressed.pt")
    assert second[-1].startswith(f"not in ${WEIGHTS_VARIABLE}/hpsv2.1")


class Odd:
    """Somebody's loader that says nonsense of itself."""

    range = None


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (ImportError("No module named 'nowhere'"), "broken: ImportError: No module named 'nowhere'"),
        (SyntaxError("invalid syntax"), "broken: SyntaxError: invalid syntax"),
        (RuntimeError("no GPU"), "broken: RuntimeError: no GPU"),
        (None, "broken: TypeError"),
    ],
)
def test_a_broken_scorer_hides_no_other(
    monkeypatch: pytest.MonkeyPatch, fault: Exception | None, problem: str
) -> None:
    get: Callable[[str], object] = catalogue.get

    def broken(name: str) -> object:
        if name != "jpeg":
            return get(name)
        if fault is None:
            return Odd()
        raise fault

    monkeypatch.setattr(catalogue, "get", broken)
    found = list_scorers("jp*")
    assert found[0].problem.startswith(problem)
    assert lines(found)[0][-1] == found[0].problem
    assert [one.name for one in found] == ["jpeg", "jpeg-incompressibility"]
    assert not found[1].problem


def test_the_page_names_every_scorer() -> None:
    page = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text()
    missing = [n for n in catalogue.names() if not n.startswith("shapes-") and f"`{n}`" not in page]
    assert not missing, f"docs/scorers.md lacks {missing}"
