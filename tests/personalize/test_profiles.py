"""Profiles: the question, and states that come back by person, padded, and go with the person."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffalign.personalize.profiles import Shown, profile_prompt, read_profiles, write_profiles
from diffalign.personalize.users import Users


def test_the_question_names_pictures_and_preferences() -> None:
    found = profile_prompt(
        [Shown(caption='a "cat"', preferred_first=True), Shown(caption="x", preferred_first=False)]
    )
    assert r'caption "a \"cat\"": pictures 1 and 2. The person preferred picture 1.' in found
    assert "pictures 3 and 4. The person preferred picture 4." in found
    with pytest.raises(ValueError, match="at least one pair"):
        profile_prompt([])


def test_states_come_back_padded_and_go_with_their_person(tmp_path: Path) -> None:
    users = Users(tmp_path, "tokens")
    users.add_all({"anna": torch.randn(2, 3), "ben": torch.randn(2, 3)})
    anna, ben = users.ids()
    states = {anna: torch.randn(4, 6), ben: torch.randn(2, 6)}
    file = write_profiles(tmp_path / "profiles.safetensors", states, "vlm")
    found = read_profiles(file, [ben, "nobody", anna], model="vlm")
    assert found.mask.sum(1).tolist() == [2, 0, 4]
    torch.testing.assert_close(found.states[2], states[anna], rtol=1e-3, atol=1e-3)
    assert found.states[0, 2:].abs().max() == 0
    by_name = write_profiles(
        tmp_path / "named.safetensors", {n: states[anna] for n in ("anna", "ann")}, "vlm"
    )
    users.delete("anna")
    assert read_profiles(by_name, ["anna", "ann"]).mask.any(1).tolist() == [False, True]
    assert read_profiles(file, [anna, ben]).mask.any(1).tolist() == [False, True]
    with pytest.raises(ValueError, match="states of 'vlm', not of 'other'"):
        read_profiles(file, [ben], model="other")
    with pytest.raises(FileExistsError, match="choose another name"):
        write_profiles(file, states, "vlm")
    with pytest.raises(ValueError, match="not finite in half precision"):
        write_profiles(tmp_path / "b.safetensors", {ben: torch.full((1, 2), 1e6)}, "vlm")
    with pytest.raises(ValueError, match="holds no profiles"):
        read_profiles(tmp_path / "users.safetensors", [ben])
