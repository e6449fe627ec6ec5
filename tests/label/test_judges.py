"""Scorers that label: what is refused before anything is drawn."""

from __future__ import annotations

import pytest

from diffalign.data.records import DataError
from diffalign.label.judges import refuse_prompts


def test_a_scorer_of_some_prompts_refuses_others() -> None:
    with pytest.raises(
        DataError, match=r"scorer shapes-large cannot judge these prompts: .*a photo of a dog"
    ):
        refuse_prompts(["jpeg", "shapes-large"], ["a red circle on a gray background", "a photo of a dog"])
    refuse_prompts(["jpeg"], ["a photo of a dog"])
    refuse_prompts(["shapes-large"], ["a red circle on a gray background"])
