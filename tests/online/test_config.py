"""What an online recipe refuses before anything is loaded, and that a resolved one can be read again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from diffalign.config import ConfigError
from diffalign.diffusion.rollout import replay
from diffalign.objectives.steps import online_names
from diffalign.online.run import load_online
from diffalign.train.align import is_online
from diffalign.train.config import recipe_text
from tests.online.by_hand import harvest
from tests.online.runs import BRIGHT, LATENT, recipe

JUDGE = {"scorer": LATENT}


def alike(*words: str, weight: float = 1.0) -> list[dict[str, Any]]:
    """Two rewards."""
    given = (*words, "", "")[:2]
    return [{"scorer": s, "word": w, "weight": weight} for s, w in zip((BRIGHT, "jpeg"), given, strict=True)]


BRANCH = "rollout.branching.candidates=3"
REFUSED: list[tuple[str, list[str], dict[str, Any], str]] = [
    ("grpo", ["data.path=null"], {}, r"data\.path is missing"),
    ("grpo", ["precision=fp64"], {}, "precision is fp64, in which no pictures"),
    ("grpo", ["precision=fp16"], {}, "precision is fp16, in which the loss scaler drops updates"),
    ("grpo", ["combination.weights=[1.0]"], {}, r"set rewards\[k\]\.weight instead"),
    ("lpo", ["policy.reference=none"], {}, r"policy\.reference must not be none"),
    # a ratio on a run without noise
    ("grpo", ["rollout.transition.name=ode"], {}, "the rollout draws no noise"),
    ("grpo", ["rollout.transition={name: dpm2}"], {}, "the rollout draws no noise"),
    ("ddpo", ["rollout.stochastic.which=none"], {}, "the rollout draws no noise"),
    ("grpo", ["rollout.transition={name: ddim, eta: 0.0}"], {}, "the rollout draws no noise"),
    ("grpo", ["rollout.transition={name: flow_sde, noise_level: 0.0}"], {}, "the rollout draws no noise"),
    ("grpo", ["rollout.transition={name: dance_sde, eta: 0.0}"], {}, "the rollout draws no noise"),
    ("grpo", ["rollout.steps=1"], {}, "no step of the rollout may draw noise"),
    (
        "grpo", ["rollout.stochastic={which: window, count: 9}"], {},
        r"stochastic\.count is 9, and there are 3 steps",
    ),
    # branching
    ("nft", [BRANCH], {"judge": JUDGE}, r"rollout\.branching is for objectives on steps"),
    ("online_pairs", [BRANCH], {"judge": JUDGE}, r"rollout\.branching is for objectives on steps"),
    ("grpo", [BRANCH], {}, "go together: the judge compares"),
    ("grpo", [], {"judge": JUDGE}, "go together: the judge compares"),
    ("grpo", [BRANCH], {"judge": JUDGE}, "take objective lpo or spo"),
    ("lpo", ["rollout.branching.first=3"], {}, "no step of the rollout branches"),
    ("lpo", ["judge.scale=0.0"], {}, r"judge\.scale is 0"),
    # what makes the means of flow_dppo and grpo_guard
    ("grpo_guard", ["rollout.recorder.means=false"], {}, r"set rollout\.recorder\.means=true"),
    ("flow_dppo", ["rollout.recorder.means=false"], {}, r"set rollout\.recorder\.means=true"),
    # groups and pictures
    ("grpo", ["groups.images=1"], {}, "images is 1; it must be at least 2"),
    ("grpo", ["groups.prompts=0"], {}, "prompts is 0; it must be at least 1"),
    ("grpo", ["groups.batch=0"], {}, "batch is 0; it must be at least 1"),
    ("online_pairs", ["groups.reference_share=1.5"], {}, "reference_share is 1.5"),
    ("grpo", ["groups.reference_share=0.5"], {}, r"groups\.reference_share is for online_pairs"),
    (
        "online_pairs", ["groups.reference_share=0.5", "policy.reference=none"],
        {"objective": {"name": "online_pairs", "objective": {"name": "mapo"}}},
        r"policy\.reference must not be none",
    ),
    # rewards
    ("grpo", ["rewards=[]"], {}, "rewards is empty: name at least one"),
    (
        "grpo", [], {"rewards": [{"scorer": LATENT, "looks": "latents", "among": "group"}]},
        "scores latents alone",
    ),
    ("grpo", [], {"rewards": [{"scorer": LATENT, "looks": "latents", "noise": 2.0}]}, "noise is 2.0"),
    ("grpo", ["combination.how=pareto"], {}, "pareto asks for one of several rewards"),
    ("grpo", ["combination.how=pareto"], {"rewards": alike("dark", "dark")}, "with different words"),
    ("grpo", ["combination.how=pareto", "groups.prompts=3"], {"rewards": alike()}, "take a multiple of 2"),
    ("grpo", ["combination.how=pareto"], {"rewards": alike(weight=2.0)}, "weight at 1"),
    ("online_pairs", ["combination.how=pareto"], {"rewards": alike()}, r"set objective\.rule to pareto"),
    ("grpo", [], {"rewards": alike("dark")}, r"set combination\.how=pareto"),
    ("crd", ["objective.kl_guidance=0"], {}, r"crd\.kl_guidance is 0"),
    ("grpo", ["combination.how=gated"], {}, "gated needs a check and at least one other reward"),
    ("grpo", ["patience=0.0"], {}, "patience is 0"),
    # a learned baseline
    ("nft", ["advantage={name: value}"], {}, "and nft asks for no advantage of single steps"),
    ("online_pairs", ["advantage={name: value}"], {}, "online_pairs asks for no advantage of single steps"),
    ("d3po", ["advantage={name: value}"], {}, "d3po asks for no advantage of single steps"),
    ("dense_reward_pl", ["advantage={name: value}"], {}, "dense_reward_pl asks for no advantage of single"),
    ("lpo", ["advantage={name: value}"], {}, "lpo asks for no advantage of single steps"),
    ("dpok", ["advantage={name: value}", "rollout.transition.name=ode"], {}, "the rollout draws no noise"),
    ("dpok", ["advantage={name: value}", "combination.how=gdpo"], {}, "combination.how is gdpo: set it to"),
    ("dpok", ["advantage={name: value, replay: 0}"], {}, r"advantage\.replay is 0; it must be at least 1"),
    ("dpok", ["advantage={name: value, learning_rate: 0.0}"], {}, r"advantage\.learning_rate is 0"),
    # pairs
    (
        "online_pairs", [],
        {"objective": {"name": "online_pairs", "objective": {"name": "dpo"}, "rule": "wurst"}}, "wurst",
    ),
    ("nft", ["pairing.share=0.25"], {}, "pairing is of the pairs of online_pairs"),
    ("online_pairs", ["pairing.share=0.75"], {}, r"rule\.share is 0\.75"),
    ("online_pairs", ["objective.objective={name: smpo}"], {}, "which fresh pictures do not have"),
    # updates, noise, weights
    ("grpo", ["update.updates=0"], {}, "updates is 0"),
    ("grpo", ["update.passes=0"], {}, "passes is 0"),
    ("grpo", ["update.micro_batch=0"], {}, "micro_batch is 0"),
    ("grpo", ["update.step_share=0.0"], {}, r"step_share is 0\.0; it must be in \(0, 1\]"),
    ("lpo", ["update.step_share=0.5"], {}, r"update\.step_share is of the steps of pictures"),
    ("nft", ["update.step_share=0.5"], {}, r"update\.step_share is of the steps of pictures"),
    ("nft", ["noise.low=0.5", "noise.high=0.5"], {}, r"0 <= low < high <= 1"),
    ("nft", ["noise.draws=0"], {}, "draws is 0"),
    ("dgpo", ["noise.per=image"], {}, r"set noise\.per=group"),
    ("d3po", ["groups.same_start=false"], {}, r"set groups\.same_start=true"),
    ("nft", ["weights.old=nfd"], {}, r"weights\.old is 'nfd'; it takes copy"),
    ("nft", ["weights.sampling=ols"], {}, r"weights\.sampling is 'ols'; it takes policy, old, copy"),
    ("awm", ["weights.anchor=1.0"], {}, r"weights\.anchor is 1\.0"),
    ("grpo", ["stop.patience=0"], {"stop": {}}, "patience is 0"),
    ("grpo", ["stop={drop: 2.0}"], {}, "drop is 2.0"),
    ("grpo", ["stop={drop: 0.1}"], {}, r"stop needs validate\.every and validate\.judge"),
    ("grpo", ["grups.images=3"], {}, "grups"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "blocks", "said"), REFUSED)
def test_what_does_not_fit_is_refused(
    name: str, overrides: list[str], blocks: dict[str, Any], said: str, config_of: Any
) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(name, *overrides, **blocks)


@pytest.mark.parametrize(
    ("name", "changes", "processes", "refused"),
    [
        ("grpo", (), 2, False),  # 2 prompts of 4 pictures
        ("grpo", (), 4, False),
        ("grpo", (), 3, True),
        ("dgpo", (), 4, True),
        ("crd", (), 2, False),
        ("d3po", (), 4, True),
        ("dense_reward_pl", (), 4, True),
        ("online_pairs", (), 4, True),
        ("lpo", (), 4, False),  # a picture's candidates are its own
        ("grpo", ("rewards=[{scorer: jpeg, among: group}]",), 4, True),
    ],
)
def test_groups_that_processes_cannot_share(
    name: str, changes: tuple[str, ...], processes: int, refused: bool, config_of: Any
) -> None:
    config = config_of(name, *changes)
    if not refused:
        config.check_processes(processes)
        return
    with pytest.raises(ConfigError, match=f"{processes} processes must divide it"):
        config.check_processes(processes)


@pytest.mark.parametrize("name", online_names())
def test_a_resolved_recipe_reads_as_itself(name: str, config_of: Any) -> None:
    config = config_of(name)
    again = load_online(yaml.safe_load(recipe_text(config)))
    assert again == config
    assert recipe_text(again) == recipe_text(config)


def test_blocks_by_name_survive_too(config_of: Any) -> None:
    config = config_of(
        "grpo", "advantage={name: ddpo, size: 8, min_count: 4}", "rollout.transition={name: cps}",
        "weights.old={first: 0.25, rate: 0.005}", "stop={drop: 0.1}", "validate={every: 1, judge: jpeg}",
        "rewards=[{scorer: jpeg, weight: 0.5}, {scorer: clipscore, among: group}]", "combination.how=gdpo",
    )  # fmt: skip
    assert load_online(yaml.safe_load(recipe_text(config))) == config
    assert (config.advantage.size, config.weights.old.first) == (8, 0.25)


def test_a_recipe_with_a_rollout_is_online(tmp_path: Path) -> None:
    raw = recipe("grpo", "sd", tmp_path, tmp_path, model="nowhere")
    assert is_online(raw)
    assert not is_online({k: v for k, v in raw.items() if k != "rollout"})
    assert is_online({"policy": {"model": "x"}}, ["rollout.steps=3"])


def test_a_replay_at_another_guidance_is_refused() -> None:
    pictures = harvest([0.0], [0])
    record = pictures.run.records[0]
    object.__setattr__(pictures.guided, "scale", 5.0)
    with pytest.raises(ValueError, match="rollout was made at guidance 1 and is replayed at 5"):
        replay(pictures.guided, pictures.run, record.x, record.x_next, 0)


def test_rewards_are_listed_in_the_settings(config_of: Any) -> None:
    settings = config_of("grpo").settings()
    assert (settings["pictures an iteration"], settings["rewards"]) == (8, [BRIGHT])
