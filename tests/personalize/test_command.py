"""``diffalign users``: somebody comes by votes, is listed, given out and deleted; and which pair is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import scorers
from diffalign.cli import app
from diffalign.evaluate.results import write_rows
from diffalign.personalize.adapter import BranchOptions, UserAdapter, save_adapter
from diffalign.personalize.asking import ask
from diffalign.personalize.encoders import make_options
from diffalign.personalize.from_votes import decided_votes, examples_of
from diffalign.personalize.new_user import encode
from diffalign.personalize.users import Users
from diffalign.votes.pictures import find_pictures
from diffalign.votes.rows import Vote, VoteError, to_lines
from scorers.pickscore import PickScore
from tests.scorers.conftest import tiny_clip, tiny_tokenizer
from tests.scorers.test_pal import tiny_pal
from tests.votes.helpers import png, results, row, vote

runner = CliRunner()
SMALL = {"tokens": 4, "width": 6, "feature": 16, "inner": 8, "depth": 1, "heads": 2}


def run(*arguments: object) -> str:
    found = runner.invoke(app, ["users", *map(str, arguments)])
    assert found.exit_code == 0, found.output
    return found.output


def refused(*arguments: object) -> str:
    found = runner.invoke(app, ["users", *map(str, arguments)])
    assert found.exit_code == 2, found.output
    return " ".join(found.output.split())


def adapter(folder: Path, name: str, features: str = "", **options: object) -> UserAdapter:
    """A folder with an encoder and no layers."""
    torch.manual_seed(0)
    encoder = make_options(name, options).make()
    made = UserAdapter(encoder=encoder, layers={}, branch=BranchOptions(features=features), model="UNet")
    save_adapter(made, folder)
    return made


@pytest.fixture
def voted(tmp_path: Path) -> tuple[Path, Path, list[Vote]]:
    rows = results(tmp_path / "results", prompts=4)
    votes = [vote(rows, i, "ab"[i % 2], at=i) for i in range(3)] + [vote(rows, 3, "tie", at=9)]
    file = tmp_path / "votes.jsonl"
    file.write_text(to_lines(votes))
    return tmp_path / "results", file, votes


def test_somebody_comes_by_votes_and_goes(tmp_path: Path, voted: tuple[Path, Path, list[Vote]]) -> None:
    images, file, votes = voted
    torch.manual_seed(1)
    tower = PickScore(tiny_clip(), tiny_tokenizer())
    tower.save(tmp_path / "tower")
    folder = tmp_path / "users"
    made = adapter(folder, "few_shot", f"pickscore={tmp_path / 'tower'}", **SMALL)
    said = run("add", folder, "anna", "--votes", file, "--images", images)
    assert "from 3 votes" in said  # the tie says nothing
    towers = scorers.load("pickscore", weights=tmp_path / "tower")
    examples = examples_of(decided_votes(votes, "anna"), find_pictures([images]), towers)
    assert examples.mask.tolist() == [[True] * 3]
    torch.testing.assert_close(Users(folder).vector("anna"), encode(made.encoder, examples)[0])
    assert "3 votes" in run("list", folder)
    assert "1 people, stored as tokens" in run("list", folder)
    out = tmp_path / "anna.json"
    run("export", folder, "anna", "-o", out)
    assert json.loads(out.read_text()) == json.loads(run("export", folder, "anna"))
    assert "exists: choose another --output" in refused("export", folder, "anna", "-o", out)
    assert "is stored already" in refused("add", folder, "anna", "--votes", file, "--images", images)
    assert "is deleted" in run("delete", folder, "anna", "--also", tmp_path / "results")
    assert "0 people" in run("list", folder)
    assert "nobody is stored as" in refused("delete", folder, "anna")
    message = refused("add", folder, "ben", "--votes", file, "--images", images)
    assert "no decided votes of 'ben'; there are some of anna" in message


@pytest.mark.slow
def test_weights_of_prototypes_come_from_their_reward(
    tmp_path: Path, voted: tuple[Path, Path, list[Vote]]
) -> None:
    images, file, _ = voted
    tiny_pal(PickScore(tiny_clip(), tiny_tokenizer())).save(tmp_path / "pal")
    folder, other = tmp_path / "users", tmp_path / "other"
    adapter(folder, "table", tokens=4, width=6, prototypes=2)
    adapter(other, "table", tokens=4, width=6, prototypes=3)
    given = ("--votes", file, "--images", images)
    assert "name its PAL reward with --reward" in refused("add", folder, "anna", *given)
    run("add", folder, "anna", *given, "--reward", tmp_path / "pal")
    assert Users(folder).kind == "weights"
    assert Users(folder).vector("anna").shape == (2,)
    assert Users(folder).vector("anna").abs().max() > 1e-4
    message = refused("add", other, "anna", *given, "--reward", tmp_path / "pal")
    assert "has 2 prototypes and the table in" in message


def test_a_vector_made_elsewhere(tmp_path: Path) -> None:
    folder, file = tmp_path / "users", tmp_path / "ben.safetensors"
    adapter(folder, "table", tokens=4, width=6)
    save_file({"tokens": torch.ones(4, 6)}, file)
    assert "is stored" in run("add", folder, "ben", "--vector", file)
    assert torch.equal(Users(folder).vector("ben"), torch.ones(4, 6))
    run("delete", folder, "ben")
    save_file({"tokens": torch.ones(3, 9)}, file)  # nobody is there any more whose vector it could be unlike
    assert "the vector is (3, 9), and the encoder" in refused("add", folder, "ben", "--vector", file)
    save_file({"a": torch.ones(4, 6), "b": torch.ones(1)}, file)
    assert "holds 2 tensors" in refused("add", folder, "carla", "--vector", file)
    assert "name --votes and --images, or --vector" in refused("add", folder, "carla")
    assert "holds no user_adapter_config.json" in refused("add", tmp_path / "no", "x", "--vector", file)


def planted(folder: Path) -> Path:
    """Pairs that differ in brightness alone, in contrast alone, or in nothing."""
    flat = np.full((8, 8, 3), 120, dtype=np.uint8)
    board = (np.indices((8, 8)).sum(0) % 2)[:, :, None]
    contrast = (flat + 80 * (2 * board - 1)).astype(np.uint8)
    kinds = {0: flat + 60, 1: flat + 50, 2: contrast, 3: (flat + 70 * (2 * board - 1)).astype(np.uint8)}
    rows = []
    for i, other in kinds.items():
        for model, array in (("base", flat), ("dpo", other.astype(np.uint8))):
            data, path = png(array), f"{model}/{i}.png"
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            rows.append(row(f"prompt {i}", model, 0, path, data, {}))
    write_rows(folder, rows)
    return folder


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    folder = planted(tmp_path / "results")
    pictures = find_pictures([folder])
    first = ask([], pictures, "anna", features=["image"])
    assert 0 < first.information < 0.7
    votes = [vote(pictures.rows, i, "b", at=i) for i in (0, 1)]
    found = ask(votes, pictures, "anna", features=["image"])
    assert found.pair.a.prompt in ("prompt 2", "prompt 3")  # brightness is known by now
    assert found.answered == 2
    turned = [
        votes[0],
        vote(pictures.rows, 1, "a", models=("dpo", "base"), at=1),
    ]  # the same, sides exchanged
    assert ask(turned, pictures, "anna", features=["image"]) == found
    all_votes = [vote(pictures.rows, i, "b", at=i) for i in range(4)]
    with pytest.raises(VoteError, match="all 4 pairs were asked"):
        ask(all_votes, pictures, "anna", features=["image"])
    file = tmp_path / "votes.jsonl"
    file.write_text(to_lines(votes))
    said = run("ask", folder, "--name", "anna", "--votes", file, "--features", "image")
    assert found.pair.a.path in said
    assert "known from 2 votes of anna and 0 other people" in said
    assert "no features are called 'taste'" in refused("ask", folder, "--name", "a", "--features", "taste")
    assert "the results have no scores" in refused("ask", folder, "--name", "a", "--features", "scores")
