"""Every objective, and the other parts of a method, through the trainer on tiny models."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from diffalign.config import ConfigError
from diffalign.data.records import BytesImage, DataError, Record
from diffalign.data.region import Region
from diffalign.objectives import names, objectives
from diffalign.policy import Policy
from diffalign.train.align import align, load_recipe
from diffalign.train.run import RunFolder
from diffalign.world.grammar import single_prompts
from diffalign.world.shapes import draw
from tests.train.runs import recipe

OPTIONS: dict[str, dict[str, Any]] = {
    "dspo": {"beta": 500.0},
    "rankdpo": {"phi": "wins"},
    "capo": {"beta": 500.0},
}
PEOPLE: dict[str, dict[str, Any]] = {
    "own_other": {"encoder": {"name": "table", "tokens": 4, "width": 24}, "dropout": 0.5},
}
"""The people block of objectives that need one."""
QUICK = ("kto", "rankdpo", "sdpo")
"""One of each data kind, and one with tensors; the others are slow tests."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compositions")


def records_of(kind: str, n: int = 8) -> list[Record]:
    """Pairs, rankings of three, or likes and dislikes in turn, of rendered pictures."""
    rng = np.random.default_rng(0)
    prompts = single_prompts("train")[:n]
    each = {"pairs": 2, "ranking": 3}.get(kind, 1)
    made = [(draw(prompts, rng) * 255).byte().permute(0, 2, 3, 1).numpy() for _ in range(each)]
    found = []
    for i, prompt in enumerate(prompts):
        values = {"pairs": (1.0, 0.0), "ranking": (1.0, 0.5, 0.0)}.get(kind, (float(i % 2 == 0),))
        word: Any = {"pairs": "pair", "ranking": "ranking"}.get(kind, "labels")
        images = tuple(BytesImage.from_array(m[i]) for m in made)
        who = ("anna", "ben")[i % 2]
        found.append(Record(prompt=str(prompt), images=images, kind=word, values=values, rater=who))
    return found


def run(family: str, folder: Path, output: Path, kind: str, *overrides: str) -> list[dict[str, Any]]:
    """Two steps; the lines of metrics."""
    made = align(
        recipe(family, folder, output), "steps=2", "checkpoint_every=0", *overrides, records=records_of(kind)
    )
    return RunFolder(root=made.dir).rows()


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names()]
)
@pytest.mark.parametrize("family", ["sd", pytest.param("sd3", marks=pytest.mark.slow)])
def test_every_objective_trains(name: str, family: str, folder: Path, tmp_path: Path) -> None:
    block = yaml.safe_dump({"name": name} | OPTIONS.get(name, {}), default_flow_style=True, width=1000)
    people = yaml.safe_dump(PEOPLE.get(name), default_flow_style=True, width=1000).partition("\n")[0]
    options = (f"objective={block.strip()}", f"people={people}")
    lines = run(family, folder, tmp_path / "run", objectives.get(name).data, *options)
    assert len(lines) == 2
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in lines)
    assert lines[0]["grad_norm"] > 0
    assert load_recipe(RunFolder(root=tmp_path / "run").config).objective == load_recipe(
        recipe(family, folder, tmp_path / "x"), options
    ).objective  # fmt: skip


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("sd", ["corruptor={name: ddim_inversion, steps: 3}"]),
        pytest.param("sd3", ["corruptor={name: renoise_inversion, steps: 2}"], marks=pytest.mark.slow),
        (
            "sd",
            ["corruptor={name: ddim_inversion, steps: 2, network: reference}", "space={name: unet_features}"],
        ),
        pytest.param("sd3", ["space={name: dit_features}"], marks=pytest.mark.slow),
        pytest.param("sd", ["space={name: pixel}", "objective={name: simpo}"], marks=pytest.mark.slow),
        pytest.param("sd", ["space={name: decoder_features}"], marks=pytest.mark.slow),
        ("sd", ["timesteps={name: discounted}", "error_weight={name: sigmoid, b: -1}"]),
    ],
)
@pytest.mark.slow
def test_other_parts_train(family: str, overrides: list[str], folder: Path, tmp_path: Path) -> None:
    lines = run(family, folder, tmp_path / "run", "pairs", *overrides)
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_self_npo_learns_from_its_own_average(family: str, folder: Path, tmp_path: Path) -> None:
    corruptor = "corruptor={name: truncated_sampling, grid: 5, steps: 2}"
    options = ["objective={name: self_npo}", corruptor, "error_weight=x0_equivalent"]
    lines = run(family, folder, tmp_path / "run", "labels", *options)
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)


@pytest.mark.slow
def test_kto_estimates_the_distance_under_other_captions(folder: Path, tmp_path: Path) -> None:
    lines = run("sd", folder, tmp_path / "run", "labels", "objective={name: kto, kl: mismatched}")
    assert lines[0]["kl"] == 0  # policy and reference are still one
    assert lines[1]["kl"] != 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3"])
@pytest.mark.parametrize(
    "objective",
    [
        "{name: with_terms, anchor: 1.0, anchor_on: rollouts, pair: {name: dpo, beta: 500}}",
        "{name: seppo, anchor: more_draws, draws: 2, beta: 500}",
    ],
)
def test_further_passes_feed_the_objective(objective: str, family: str, folder: Path, tmp_path: Path) -> None:
    lines = run(
        family, folder, tmp_path / "run", "pairs", f"objective={objective}", "optim.learning_rate=0.01"
    )
    assert all(math.isfinite(line["loss"]) for line in lines)
    if "anchor_term" in lines[0]:
        assert lines[0]["anchor_term"] == 0  # policy and reference are still one
        assert lines[1]["anchor_term"] > 0
    else:
        assert lines[0]["flip"] == 0  # neither is better yet
        assert lines[1]["flip"] != 0


@pytest.mark.slow
def test_terms_add_up_to_the_gradient_of_their_sum(folder: Path, tmp_path: Path) -> None:
    """DPO with an SFT term and DPO within with_terms are the same; figures of both terms are shown."""
    term = run("sd", folder, tmp_path / "a", "pairs", "terms=[{objective: {name: sft}, weight: 0.5}]")
    inside = "objective={name: with_terms, sft: 0.5, pair: {name: dpo, beta: 500}}"
    both = run("sd", folder, tmp_path / "b", "pairs", inside)
    assert term[0]["1/loss"] == pytest.approx(term[0]["error_win"], rel=1e-6)
    assert term[0]["grad_norm"] == pytest.approx(both[0]["grad_norm"], rel=1e-5)
    assert term[1]["error_win"] == pytest.approx(both[1]["error_win"], rel=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("terms=[{objective: {name: kto}}]", "kto trains on labels, but the objective on pairs"),
        ("corruptor={name: truncated_sampling}", "set ema"),
        ("space={name: pixel}", "error_weight is eps_equivalent, which converts native errors"),
        ("space={name: pixels}", "did you mean"),
        ("{space: {name: pixel}, error_weight: {name: sigmoid}}", "error_weight is sigmoid, which converts"),
        ("objective={name: sdpo, pair: {name: dpo, gamma: 1}}", "unknown key 'objective.pair.gamma'"),
        ("terms=[{objective: {name: sft}, weight: 0}]", "must be above 0"),
    ],
)
def test_parts_that_do_not_fit_are_named(override: str, message: str, tmp_path: Path) -> None:
    content = recipe("sd", tmp_path, tmp_path / "run") | {"ema": 0.0, "error_weight": "eps_equivalent"}
    overrides = [override]
    if override.startswith("{"):
        content, overrides = content | yaml.safe_load(override), []
    with pytest.raises(ConfigError, match=message):
        load_recipe(content, overrides)


@pytest.mark.slow
def test_margins_and_regions_of_records_reach_the_loss(folder: Path, tmp_path: Path) -> None:
    plain = records_of("pairs")
    margin = [replace(r, margin=2.0) for r in plain]
    corner = (Region(rectangle=(0.0, 0.0, 0.5, 0.5)), None)
    marked = [replace(r, regions=corner) for r in plain]
    first: dict[str, dict[str, Any]] = {}
    for name, records in (("plain", plain), ("margin", margin), ("marked", marked)):
        made = align(recipe("sd", folder, tmp_path / name), "steps=1", "data.latents=mode", records=records)
        first[name] = RunFolder(root=made.dir).rows()[0]
    assert first["plain"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"]["loss"] == pytest.approx(math.log(1 + math.exp(2.0)), abs=1e-5)  # -log sigma(-2)
    assert first["marked"]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["marked"]["error_win"] != pytest.approx(first["plain"]["error_win"], rel=1e-3)
    with pytest.raises(ValueError, match="regions of pictures, which only the native space"):
        align(recipe("sd", folder, tmp_path / "x"), "space={name: pixel}", records=marked)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "{name: pool, every: 2, size: 2, draw: unit}"])
def test_a_moving_reference_is_resumed_exactly(kind: str, folder: Path, tmp_path: Path) -> None:
    def options(steps: int) -> list[str]:
        return [
            f"steps={steps}",
            "checkpoint_every=0",
            f"policy.reference={kind}",
            "optim.learning_rate=0.01",
        ]

    whole = align(recipe("sd", folder, tmp_path / "a"), *options(6), records=records_of("pairs"))
    align(recipe("sd", folder, tmp_path / "b"), *options(3), records=records_of("pairs"))
    again = align(
        recipe("sd", folder, tmp_path / "b"), *options(6), records=records_of("pairs"), resume=tmp_path / "b"
    )
    lines = [RunFolder(root=r.dir).rows() for r in (whole, again)]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    off = run("sd", folder, tmp_path / "c", "pairs", "optim.learning_rate=0.01", "steps=6")
    assert off[5]["loss"] != pytest.approx(lines[0][5]["loss"], rel=1e-4)  # the reference did move


@pytest.mark.slow
def test_npo_learns_the_opposite_and_guides_away_from_it(folder: Path, tmp_path: Path) -> None:
    judge = "tests.train.runs:Brightness"
    evaluation = f"evaluate={{prompts: 2, seeds: 2, steps: 2, judges: ['{judge}']}}"
    both = ["optim.learning_rate=0.01", "data.latents=mode", "steps=2"]
    options = [*both, "data.reverse=true", "policy.guidance={}", evaluation]
    made = align(recipe("sd", folder, tmp_path / "run"), *options, records=records_of("pairs"))
    plain = align(recipe("sd", folder, tmp_path / "plain"), *both, records=records_of("pairs"))
    lines, other = RunFolder(root=made.dir).rows(), RunFolder(root=plain.dir).rows()
    assert lines[0]["error_win"] == pytest.approx(other[0]["error_lose"], rel=1e-5)
    (files,) = [sorted(p.name for p in (made.dir / "guidance").iterdir())]
    assert files == ["guidance.json", "negative"]
    with pytest.raises(ConfigError, match="train a LoRA"):
        load_recipe(recipe("sd", folder, tmp_path / "x"), ["policy.guidance={}", "policy.adapter=null"])


def test_long_prompts_are_encoded_whole(folder: Path, tmp_path: Path) -> None:
    long = "a red circle. " * 20
    records = [replace(r, prompt=long + r.prompt) for r in records_of("pairs")]
    losses = []
    for name, option in (("cut", "policy.long_prompts=null"), ("whole", "policy.long_prompts={length: 60}")):
        made = align(recipe("sd", folder, tmp_path / name), "steps=1", option, records=records)
        losses.append(RunFolder(root=made.dir).rows()[0]["error_win"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spin", "seppo"])
def test_losers_are_made_in_rounds_and_finished_rounds_are_kept(
    name: str, folder: Path, tmp_path: Path
) -> None:
    options = [f"losers={{name: {name}, iterations: 2, sampling_steps: 1}}", "steps=2", "checkpoint_every=0"]
    content = recipe("sd", folder, tmp_path / "run")
    made = align(content, *options, records=records_of("labels"))
    assert made.dir == tmp_path / "run" / "round-2"
    lines = [RunFolder(root=tmp_path / "run" / f"round-{i}").rows() for i in (1, 2)]
    for first in (line[0] for line in lines):
        # policy and reference are one at the start of SPIN's rounds; SePPO's second may look further back
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6 if name == "spin" else 1.0)
    kept = (tmp_path / "run" / "round-1" / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "run" / "round-2")
    again = align(content, *options, records=records_of("labels"), resume=tmp_path / "run")
    assert RunFolder(root=again.dir).rows()[-1]["loss"] == lines[1][-1]["loss"]
    assert (tmp_path / "run" / "round-1" / "metrics.jsonl").stat().st_mtime_ns == kept


def test_losers_need_a_lora(folder: Path, tmp_path: Path) -> None:
    content = recipe("sd", folder, tmp_path / "run")
    with pytest.raises(ConfigError, match="all weights are trained"):
        load_recipe(content, ["losers={}", "policy.adapter=null"])


@pytest.mark.slow
def test_a_second_run_takes_over_the_reference_errors(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = f"data.reference_errors={tmp_path / 'errors'}"
    options = ["steps=3", "checkpoint_every=0", "optim.learning_rate=0.01"]
    plain = align(recipe("sd", folder, tmp_path / "a"), *options, records=records_of("pairs"))
    first = align(recipe("sd", folder, tmp_path / "b"), *options, kept, records=records_of("pairs"))

    def refuse(self: Policy) -> None:
        raise AssertionError("the reference was run")

    monkeypatch.setattr(Policy, "reference", refuse)
    again = align(recipe("sd", folder, tmp_path / "c"), *options, kept, records=records_of("pairs"))
    losses = [[line["loss"] for line in RunFolder(root=r.dir).rows()] for r in (plain, first, again)]
    assert losses[0] == losses[1] == losses[2]
    with pytest.raises(AssertionError, match="was run"):  # another seed: other noise
        align(recipe("sd", folder, tmp_path / "d"), *options, kept, "seed=1", records=records_of("pairs"))
    with pytest.raises(ConfigError, match="another at every step or none"):
        load_recipe(recipe("sd", folder, tmp_path / "x"), [kept, "policy.reference=ema"])


def test_likes_are_drawn_as_often_as_asked(folder: Path, tmp_path: Path) -> None:
    lines = run("sd", folder, tmp_path / "run", "labels", "objective={name: kto}", "data.liked_share=1.0")
    assert [line["likes"] for line in lines] == [1.0, 1.0]
    assert lines[0]["one_sided"] == 1.0


def test_selection_by_scores_that_are_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="phi"):
        run("sd", folder, tmp_path / "run", "pairs", "data.select={soft: phi}")


def test_a_sum_convention_within_a_wrapper_is_converted(folder: Path, tmp_path: Path) -> None:
    inside = "objective={name: sdpo, pair: {name: dpo, beta: 1.0, beta_convention: paper_sum}}"
    run("sd", folder, tmp_path / "run", "pairs", inside)
    pair = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["objective"]["pair"]
    assert pair["beta_convention"] == "canonical"
    assert pair["beta"] == 2 * 512


@pytest.mark.slow
def test_the_policy_inverts_without_dropout(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, bool]] = []
    predict = Policy.predict

    def watched(self: Policy, x_t: Tensor, t: Tensor, cond: Any, sizes: Tensor | None = None) -> Tensor:
        seen.append((torch.is_grad_enabled(), self.denoiser.training))
        return predict(self, x_t, t, cond, sizes)

    monkeypatch.setattr(Policy, "predict", watched)
    inverting = "corruptor={name: ddim_inversion, steps: 3, network: policy}"
    run("sd", folder, tmp_path / "run", "pairs", inverting, "policy.adapter.dropout=0.5")
    assert seen.count((True, True)) == 2, "one pass of the policy a step, with dropout"
    assert seen.count((False, True)) == 2, "one pass of the reference, which has no LoRA to drop"
    assert seen.count((False, False)) >= 2
    assert (True, False) not in seen
