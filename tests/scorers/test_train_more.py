"""Other losses, kinds of data, resume, processes and frozen towers of the one training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import scorers.train as training
from scorers.base import ScorerBase
from scorers.freezing import tower_of, unlock
from scorers.learners import Learner, TowerLearner, learner_for
from scorers.pickscore import PickScore
from scorers.train import TrainOptions, evaluate, fit, preset, probabilities, rate_at, train_scorer
from scorers.train_state import NAME, load_state
from scorers.votes import Ranking, Rating, Vote, as_votes, check_votes, split_by_prompt
from tests.scorers.test_train import bright_votes

OPTIONS = TrainOptions(
    steps=8, batch=8, learning_rate=2e-3, warmup=2, weight_decay=0.0, eval_every=2, balance_prompts=False
)


class Linear(ScorerBase):
    """A worth linear in the mean colour: trains in no time."""

    name, licence, citation = "linear", "none", "none"
    needs = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 3))
        self.requires_grad_(False)

    def score_tensor(self, x01: Tensor, prompts: Sequence[str]) -> Tensor:
        return (x01.mean((2, 3)) * self.weight).sum(1)

    def save(self, folder: str | Path, dtype: torch.dtype = torch.float32) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "weight").write_text(str(self.weight.tolist()))


def rankings(n: int, seed: int) -> list[Ranking]:
    """The brighter the better, four of a prompt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(n):
        level = torch.rand(4, generator=generator)
        rows.append(Ranking([v * torch.ones(3, 8, 8) for v in level], f"p{i}", level.tolist()))
    return rows


@pytest.mark.parametrize(
    "loss",
    [
        "pickscore",
        "hpsv2",
        "bradley-terry",
        "margin",
        "ties",
        "soft-choice",
        "listwise",
        "choice",
        "ranking-hinge",
    ],
)
def test_every_loss_learns_from_votes_and_rankings(loss: str) -> None:
    options = replace(OPTIONS, loss=loss, learning_rate=0.5, steps=12)
    for data in (bright_votes(32, 0), rankings(16, 0)):
        scorer = Linear()
        run = train_scorer(scorer, data, bright_votes(32, 1), options)
        assert run.validation.pairs_micro > 0.9
        assert bool((scorer.weight > 0).all())


def test_the_calibration_of_a_scorer_counts() -> None:
    scorer = Linear()
    scorer.weight.data.fill_(1.0)
    votes = bright_votes(8, 0)
    plain = probabilities(scorer, votes).logit()
    scorer.temperature = 0.5
    torch.testing.assert_close(probabilities(scorer, votes).logit(), 2 * plain, rtol=1e-4, atol=1e-5)
    scorer.higher_better = False
    torch.testing.assert_close(probabilities(scorer, votes).logit(), -2 * plain, rtol=1e-4, atol=1e-5)


def test_the_right_learner_is_found(scorer: PickScore) -> None:
    assert type(learner_for(scorer)) is TowerLearner
    assert type(learner_for(Linear())) is Learner
    with pytest.raises(ValueError, match="cannot learn by the loss 'emd'; it can by bradley-terry"):
        train_scorer(scorer, bright_votes(4, 0), bright_votes(4, 0), replace(OPTIONS, loss="emd"))
    with pytest.raises(ValueError, match="not from ratings"):
        train_scorer(scorer, [Rating(torch.rand(3, 8, 8), "a", (5.0,))], bright_votes(4, 0), OPTIONS)


def test_tower_loss_is_that_of_its_log_odds(scorer: PickScore) -> None:
    votes = [v._replace(label=label) for v, label in zip(bright_votes(3, 0), (1.0, 0.5, 0.3), strict=True)]
    learner = learner_for(scorer)
    found = learner(votes, "pickscore")
    assert float(found) == pytest.approx(float(Learner.each(learner, votes, "pickscore").sum()), abs=1e-5)


class StopError(Exception):
    """A kill."""


def test_a_stopped_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    votes, validation = bright_votes(32, 0), bright_votes(16, 1)
    options = replace(OPTIONS, learning_rate=0.1, patience=100)
    whole = Linear()
    wanted = train_scorer(whole, votes, validation, options)

    def dying(self: training._Run, step: int) -> bool:
        out = stop(self, step)
        if step == 4:
            raise StopError
        return out

    stop = training._Run._stop
    parts = Linear()
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "_stop", dying)
        with pytest.raises(StopError):
            train_scorer(parts, votes, validation, options, resume=tmp_path)
    state = load_state(tmp_path)
    assert state is not None
    assert state.step == 4
    again = Linear()
    assert train_scorer(again, votes, validation, options, resume=tmp_path) == wanted
    assert torch.equal(again.weight, whole.weight)
    other_picture = [votes[0]._replace(first=votes[0].second), *votes[1:]]
    other_weights = Linear()
    other_weights.weight.data += 0.1
    for start, data, chosen in (
        (Linear(), votes, replace(options, seed=1)),
        (Linear(), other_picture, options),
        (other_weights, votes, options),
    ):
        with pytest.raises(ValueError, match="of other votes, pictures, options or starting weights"):
            train_scorer(start, data, validation, chosen, resume=tmp_path)
    (tmp_path / NAME).write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="is damaged"):
        train_scorer(Linear(), votes, validation, options, resume=tmp_path)


def test_fit_leaves_no_resume_state(tmp_path: Path) -> None:
    prompts = tuple(f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop")
    report = fit(Linear(), bright_votes(128, 0, prompts), tmp_path, replace(OPTIONS, learning_rate=0.5))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["accuracy.json", "weight"]
    assert report["held_out"]["pairs_micro"] > 0.9
    assert 0 <= report["held_out"]["calibration_error"] < 0.5


def test_a_finished_scorer_is_not_overwritten(tmp_path: Path) -> None:
    prompts = tuple(f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop")
    votes, options = bright_votes(128, 0, prompts), replace(OPTIONS, steps=1)
    fit(Linear(), votes, tmp_path / "out", options)
    before = {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()}
    with pytest.raises(FileExistsError, match=r"holds a trained scorer \(accuracy\.json\).*--out"):
        fit(Linear(), votes, tmp_path / "out", options)
    assert {f.name: f.read_bytes() for f in (tmp_path / "out").iterdir()} == before
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt, out, which is not overwritten"):
        fit(Linear(), votes, tmp_path, options)


def test_accelerate_gives_the_same_as_one_process(scorer: PickScore) -> None:
    from accelerate import Accelerator

    state = {k: v.clone() for k, v in scorer.state_dict().items()}
    votes, validation = bright_votes(8, 0), bright_votes(8, 1)
    options = replace(OPTIONS, steps=2, batch=4)
    plain = train_scorer(scorer, votes, validation, options)
    first = {k: v.clone() for k, v in scorer.state_dict().items()}
    scorer.load_state_dict(state)
    assert train_scorer(scorer, votes, validation, options, accelerator=Accelerator(cpu=True)) == plain
    assert all(torch.equal(v, first[k]) for k, v in scorer.state_dict().items())


def test_shares_of_two_processes_add_up() -> None:
    """Each of two processes' gradients, averaged, is that of the whole batch in one."""
    votes = [*bright_votes(5, 0, ("a",)), *bright_votes(3, 1, ("b",))]
    gradients = []
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        scorer = Linear()
        run = training._Run(
            learner_for(scorer.requires_grad_(True)),
            votes,
            votes,
            replace(OPTIONS, balance_prompts=True),
            None,
            None,
        )
        run.rank, run.world, run.optimizer.step = rank, world, lambda: None  # type: ignore[method-assign]
        run._step(1, run.votes)
        gradients.append(scorer.weight.grad)
    torch.testing.assert_close((gradients[1] + gradients[2]) / 2, gradients[0])


def test_first_blocks_are_frozen(scorer: PickScore) -> None:
    unlock(scorer, vision=1, text=None)
    trained = {n for n, p in scorer.named_parameters() if p.requires_grad}
    assert not any("vision_model" in n and ("layers.0" in n or "embeddings" in n) for n in trained)
    assert any("vision_model" in n and "layers.1" in n for n in trained)
    assert any("text_model" in n and "embeddings" in n for n in trained)
    assert {"clip.logit_scale", "clip.visual_projection.weight"} <= trained
    with pytest.raises(ValueError, match="the text tower has 2 blocks"):
        unlock(scorer, vision=None, text=3)
    names = ["model.visual.transformer.resblocks.0.ln_1.weight", "model.transformer.resblocks.0.ln_1.weight"]
    assert [tower_of(n) for n in [*names, "model.token_embedding.weight", "mlp.layers.0.weight"]] == [
        "vision", "text", "text", None,
    ]  # fmt: skip


def test_presets_are_the_published_ones() -> None:
    hps, reward = preset("hpsv2.1"), preset("imagereward")
    assert (hps.learning_rate, hps.weight_decay, hps.batch, hps.steps, hps.summed) == (
        3.3e-6,
        0.35,
        128,
        4000,
        True,
    )
    assert (reward.learning_rate, reward.batch, reward.keep) == (1e-5, 64, "loss")
    assert reward.of_length(640).steps == 100
    assert preset("pal").head_rate == 5e-3
    with pytest.raises(ValueError, match="no training of 'jpeg'"):
        preset("jpeg")
    cosine = replace(OPTIONS, warmup=0, steps=100, schedule="cosine")
    assert [rate_at(s, cosine) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert rate_at(99, replace(cosine, schedule="constant")) == 1


def test_items_are_checked_and_turned_into_votes() -> None:
    a, b, c = (torch.rand(3, 4, 4) for _ in range(3))
    pairs = as_votes(
        [Ranking([a, b, c], "p", (1.0, 2.0, 1.0)), Rating(a, "q", (2.0,)), Rating(b, "q", (0.1, 0.9))]
    )
    assert [(v.first is b, v.label) for v in pairs[:2]] == [(True, 1.0), (True, 1.0)]
    assert [(v.second is b, v.label) for v in pairs[2:]] == [(True, 1.0)]
    parts = split_by_prompt([Ranking([a, b], str(i), (1, 0)) for i in range(50)], (0.5, 0.5))
    assert min(map(len, parts)) > 10
    with pytest.raises(ValueError, match="2 pictures and 1 values"):
        check_votes([Ranking([a, b], "p", (1.0,))], "votes")
    with pytest.raises(ValueError, match="add up"):
        check_votes([Rating(a, "p", (0.5, 0.4))], "ratings")
    with pytest.raises(ValueError, match="soft ones need a pair loss"):
        train_scorer(
            Linear(), [Vote(a, b, "p", 0.7)], [Vote(a, b, "p", 1.0)], replace(OPTIONS, loss="listwise")
        )
    with pytest.raises(ValueError, match="none of the rankings"):
        evaluate(Linear(), [Ranking([a, b], "p", (1.0, 1.0))])
