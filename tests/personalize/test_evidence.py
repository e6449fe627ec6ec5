"""What stands for people: the same for the same seeds, never the record itself; what is missing is said."""

from __future__ import annotations

import pytest
import torch

from diffalign.data.records import BytesImage, DataError, Record
from diffalign.personalize.encoders.about import Profile
from diffalign.personalize.evidence import Evidence, embed_pairs
from diffalign.personalize.history import Histories
from tests.votes.helpers import png


class Towers:
    """Features that say which picture and which prompt."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.preprocess = None

    def parameters(self) -> list[torch.Tensor]:
        return [torch.zeros(1)]

    def encode_images(self, x01: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(x01))
        return x01.mean((1, 2, 3))[:, None].expand(-1, 3)

    def encode_prompts(self, prompts: list[str]) -> torch.Tensor:
        return torch.tensor([[float(p[-1])] * 3 for p in prompts])


def image(shade: int) -> BytesImage:
    import numpy as np

    return BytesImage(png(np.full((4, 4, 3), shade, dtype=np.uint8)), f"shade {shade}")


def record(rater: str | None, prompt: int, first: int, second: int, value: float = 1.0) -> Record:
    images = (image(first), image(second))
    return Record(prompt=f"p{prompt}", images=images, kind="pair", values=(value, 1 - value), rater=rater)


RECORDS = [
    record("anna", 0, 0, 10),
    record("anna", 1, 20, 30, 0.0),
    record("anna", 2, 40, 50),
    record("ben", 0, 10, 0),
    record(None, 3, 60, 70),
]


def evidence(**given: object) -> Evidence:
    histories = Histories(RECORDS)
    features = embed_pairs(RECORDS, histories, Towers())
    return Evidence(frozenset({"rows", "examples"}), histories, table=["ben"], features=features, **given)


def test_pairs_are_features_of_winner_and_loser() -> None:
    towers = Towers()
    found = embed_pairs(RECORDS, Histories(RECORDS), towers)
    assert sorted(found) == [0, 1, 2, 3]
    assert sum(towers.calls) == 6  # shades 0 and 10 are read once
    prompt, winner, loser = found[1]
    assert (prompt[0], winner[0] * 255, loser[0] * 255) == pytest.approx((1.0, 30.0, 20.0))


def test_a_record_never_stands_for_itself() -> None:
    found = evidence(most=4)
    about = found.about([0, 0, 3], [1, 2, 3])
    assert about.rows.tolist() == [-1, -1, 0]
    prompts = about.examples.prompt[..., 0][about.examples.mask]
    assert 0.0 not in prompts.tolist()
    assert about.examples.mask[2].sum() == 0  # ben's only vote is the query itself
    again = found.about([0, 0, 3], [1, 2, 3])
    assert torch.equal(again.examples.winner, about.examples.winner)
    assert found.about([0], [9], count=2).examples.mask.sum() == 2
    drawn = {int(found.about([0], [s]).examples.mask.sum()) for s in range(30)}
    assert drawn == {1, 2}
    alone = found.about([3], [1])
    assert alone.examples.mask.sum() == 0


def test_another_person_in_the_place_of_the_own() -> None:
    about = evidence().about([3], [1], ["anna"], count=8)
    assert about.rows.tolist() == [-1]
    assert sorted(about.examples.prompt[0, :, 0].tolist()) == [1.0, 2.0]  # not prompt 0, which is asked


def test_profiles_by_name() -> None:
    def profiles(people: list[str]) -> Profile:
        states = torch.tensor([[[float(len(p))]] for p in people])
        return Profile(states=states, mask=torch.ones(len(people), 1, dtype=torch.bool))

    found = Evidence(frozenset({"profile"}), Histories(RECORDS), profiles=profiles)
    assert found.about([0, 3], [1, 1]).profile.states.flatten().tolist() == [4.0, 3.0]


def test_what_is_missing_is_said() -> None:
    with pytest.raises(ValueError, match="the user encoder needs examples, rows"):
        Evidence(frozenset({"rows", "examples"}), Histories(RECORDS))
    with pytest.raises(DataError, match="record 4 does not say who judged"):
        evidence().about([4], [0])
    with pytest.raises(ValueError, match="most is 0"):
        evidence(most=0)
