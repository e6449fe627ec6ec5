"""Axioms: scorers that obey them, scorers that break them, and the pairs that come of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffalign.data.readers import read
from diffalign.data.records import BytesImage, DataError, Record
from diffalign.data.transform import decode
from diffalign.evaluate.stats import bootstrap
from diffalign.label.axioms import (
    AXIOMS,
    AxiomOptions,
    Recompressed,
    axiom_cases,
    axiom_pairs,
    examine,
    share_by_prompt,
)
from diffalign.label.axioms_command import score_axioms, table
from diffalign.label.judges import Judge
from diffalign.world.grammar import single_prompts
from diffalign.world.shapes import draw
from tests.label.helpers import Channel

HERE = "tests.label.test_axioms"


class Constant(Channel):
    """Finds everything equally good."""

    name = "constant"

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(x01))


class Smooth(Channel):
    """Dislikes differences between neighbours, so blur pleases it; deaf to prompts."""

    name = "smooth"

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return -x01.diff(dim=-1).abs().mean((1, 2, 3))


def records(n: int = 12) -> list[Record]:
    rng = np.random.default_rng(0)
    prompts = single_prompts("train")[:n]
    pictures = [(draw(prompts, rng) * 255).byte().permute(0, 2, 3, 1).numpy() for _ in range(2)]
    return [
        Record(
            prompt=str(p),
            images=tuple(BytesImage.from_array(side[i], f"{i}-{k}") for k, side in enumerate(pictures)),
            kind="pair",
            values=(1.0, 0.0),
        )
        for i, p in enumerate(prompts)
    ]


def judge(scorer: Channel) -> Judge:
    return Judge(name=scorer.name, scorer=scorer, id="x")


def test_shares_of_scorers_that_are_known() -> None:
    from diffalign.world.scorers import obedience

    options = AxiomOptions(cases=16, strength=1.0)
    cases = axiom_cases(records(), options)
    oracle = Judge(name="obedience", scorer=obedience.load(None, device="cpu", dtype=torch.float32), id="o")
    found = {
        (f.scorer, f.axiom): f for f in examine([oracle, judge(Constant()), judge(Smooth())], cases, options)
    }
    assert {f.cases for f in found.values()} == {16}
    assert all(found["constant", a].share.value == 0.5 for a in AXIOMS)
    assert found["smooth", "blurred"].share.value == 0
    assert found["smooth", "noised"].share.value == 1
    assert found["smooth", "wrong prompt"].share.value == 0.5
    assert found["obedience", "wrong prompt"].share.value > 0.9
    assert found["obedience", "noised"].share.value > 0.9
    for finding in found.values():
        assert 0 <= finding.share.low <= finding.share.value <= finding.share.high <= 1


def test_findings_do_not_depend_on_the_batch() -> None:
    scorer = judge(Smooth())
    wide, narrow = (
        examine([scorer], axiom_cases(records(4), o), o) for o in (AxiomOptions(), AxiomOptions(batch=3))
    )
    assert wide == narrow


def test_cases_are_different_pictures_under_their_prompts() -> None:
    some = records(3)
    cases = axiom_cases([*some, *some], AxiomOptions())
    assert len(cases) == 6
    assert axiom_cases(some, AxiomOptions(cases=2)) == cases[:2]
    assert axiom_cases(some, AxiomOptions(seed=1)) != cases
    with pytest.raises(DataError, match="two prompts at least"):
        axiom_cases(some[:1], AxiomOptions())


def test_pairs_prefer_the_original() -> None:
    options = AxiomOptions(cases=3)
    cases = axiom_cases(records(3), options)
    pairs = axiom_pairs(cases, options)
    assert len(pairs) == 3 * len(AXIOMS)
    for i, pair in enumerate(pairs):
        case, axiom = cases[i // 4], AXIOMS[i % 4]
        assert pair.values == (1.0, 0.0)
        assert np.array_equal(_pixels(pair, 0), np.asarray(decode(case.image.read(), "x")))
        if axiom == "wrong prompt":
            assert np.array_equal(_pixels(pair, 0), _pixels(pair, 1))
            assert pair.prompt_of(0) == case.prompt != pair.prompt_of(1)
        else:
            assert not np.array_equal(_pixels(pair, 0), _pixels(pair, 1))
            assert pair.prompts is None
    again = axiom_pairs(cases, options)
    assert all(np.array_equal(_pixels(a, 1), _pixels(b, 1)) for a, b in zip(pairs, again, strict=True))


def test_command_examines_a_data_set_and_writes_pairs(tmp_path: Path) -> None:
    from diffalign.data.writers import write

    write(records(6), tmp_path / "data", "folder")
    arguments = [str(tmp_path / "data"), "cases=5", "quality=20"]
    lines = score_axioms(arguments, [f"{HERE}:Smooth", f"{HERE}:Constant"], output=tmp_path / "pairs")
    assert "5 cases" in lines[0]
    assert f"{HERE}:Constant" in lines[0]
    assert "50.0% [50.0%, 50.0%]" in lines[0]
    assert lines[1] == f"{tmp_path / 'pairs'}: 20 pairs"
    back = read(tmp_path / "pairs")
    assert len(back) == 20
    assert sum(r.prompts is not None for r in back) == 5
    with pytest.raises(FileExistsError, match="name another --output"):
        score_axioms(arguments, [f"{HERE}:Smooth"], output=tmp_path / "pairs")
    with pytest.raises(ValueError, match="2 are named"):
        score_axioms([*arguments, str(tmp_path)], [f"{HERE}:Smooth"])
    with pytest.raises(ValueError, match="neither --prompt"):
        score_axioms(arguments, [f"{HERE}:Smooth"], prompt="a red circle")
    with pytest.raises(ValueError, match="strenght"):
        score_axioms([*arguments, "strenght=1"], [f"{HERE}:Smooth"])


def test_intervals_resample_prompts() -> None:
    outcomes, prompts = [1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "c"]
    found = share_by_prompt(outcomes, prompts)
    (expected,) = bootstrap([[0.5], [1.0], [1.0]])
    assert (found.value, found.low, found.high) == (expected.value, expected.low, expected.high)
    exact = share_by_prompt([1.0] * 5, list("abcde"))
    assert (exact.low, exact.high) == (pytest.approx(0.025**0.2), 1.0)
    assert share_by_prompt([0.0] * 5, list("abcde")).high == pytest.approx(1 - 0.025**0.2)
    with pytest.raises(ValueError, match="one of each"):
        share_by_prompt([1.0], [])


def test_options_are_checked() -> None:
    with pytest.raises(DataError, match="between 1 and 95"):
        Recompressed(quality=99)
    with pytest.raises(DataError, match="at least 1"):
        AxiomOptions(cases=0)
    assert table([]).startswith("share of 0 cases")


def _pixels(pair: Record, side: int) -> np.ndarray:
    return np.asarray(decode(pair.images[side].read(), "x"))
