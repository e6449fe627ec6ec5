from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffalign.config import ConfigError, dump, help_of, load, options_of


@dataclass(frozen=True, kw_only=True)
class Goal(ABC):
    @abstractmethod
    def loss(self) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Dpo(Goal):
    beta: float = 2000.0
    """Pull to the reference."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta is {self.beta}; it must be above 0")

    def loss(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Kto(Goal):
    desirable: float = 1.0

    def loss(self) -> float:
        return 0.0


@dataclass(frozen=True, kw_only=True)
class Uniform:
    name: Literal["uniform"] = "uniform"
    low: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Normal:
    name: Literal["normal"] = "normal"
    mean: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Optim:
    learning_rate: float = 1e-5
    """Peak learning rate;
    over two lines."""
    betas: tuple[float, float] = (0.9, 0.999)
    fused: bool = True


@dataclass(frozen=True, kw_only=True)
class Adapter:
    rank: int = 8
    reference: Literal["auto", "off", "none"] = "auto"
    path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    objective: Goal
    """What is asked."""
    model: str = "m"
    optim: Optim = field(default_factory=Optim)
    adapter: Adapter | None = field(default_factory=Adapter)
    timesteps: Uniform | Normal = field(default_factory=Uniform)
    precision: Literal["bf16", "fp16", "fp32"] = "fp32"
    judges: tuple[str, ...] = ()
    terms: tuple[Goal, ...] = ()
    limits: dict[str, float] = field(default_factory=dict)


GOALS: dict[str, type[Goal]] = {"dpo": Dpo, "kto": Kto}


def goal(name: str) -> type[Goal]:
    if name not in GOALS:
        raise KeyError(f"no objective is called {name!r}; there are dpo, kto")
    return GOALS[name]


UNIONS = {"objective": goal, "terms": goal}
NAMES = {key: lambda cls: cls.__name__.lower() for key in UNIONS}


def make(text: str, *overrides: str, tmp_path: Path) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return load(Recipe, file, overrides, UNIONS)


def built(*overrides: str, **raw: Any) -> Recipe:
    return load(Recipe, {"objective": {"name": "dpo"}} | raw, overrides, UNIONS)


def error(*overrides: str, **raw: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        built(*overrides, **raw)
    return str(caught.value)


def test_a_file_with_blocks_and_overrides(tmp_path):
    text = "objective: {name: dpo, beta: 500}\noptim:\n  learning_rate: 1e-4\njudges: [a, b]\n"
    config = make(
        text, "optim.betas=[0.5, 0.9]", "adapter.rank=4", "timesteps={name: normal}", tmp_path=tmp_path
    )
    assert config == Recipe(
        objective=Dpo(beta=500.0),
        optim=Optim(learning_rate=1e-4, betas=(0.5, 0.9)),
        adapter=Adapter(rank=4),
        timesteps=Normal(),
        judges=("a", "b"),
    )
    assert isinstance(config.objective.beta, float)


def test_the_last_override_wins_and_the_source_is_untouched():
    source = {"objective": {"name": "dpo", "beta": 1.0}}
    assert load(Recipe, source, ["objective.beta=2", "objective.beta=3"], UNIONS).objective == Dpo(beta=3.0)
    assert source == {"objective": {"name": "dpo", "beta": 1.0}}


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-05", "+.1e-4", "0.00001", "10e-6"])
def test_numbers_with_exponents(text):
    assert built(f"optim.learning_rate={text}").optim.learning_rate == pytest.approx(1e-5)


def test_off_and_none_are_words_and_null_is_nothing():
    assert built("adapter.reference=off").adapter.reference == "off"
    assert built("adapter.reference=none").adapter.reference == "none"
    assert built("adapter=null").adapter is None
    assert built("model=2024-01-01").model == "2024-01-01"


def test_an_override_makes_the_block_it_needs():
    assert built("adapter.rank=2", adapter=None).adapter == Adapter(rank=2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lerning_rate=1", "unknown key 'optim.lerning_rate'; did you mean 'learning_rate'?"),
        ("learning_rate=1", "unknown key 'learning_rate'; did you mean 'optim.learning_rate'?"),
        ("optim.zzz=1", "unknown key 'optim.zzz'; optim takes learning_rate, betas, fused"),
        ("precision=bf6", "precision is 'bf6'; it takes one of bf16, fp16, fp32; did you mean 'bf16'?"),
        ("optim.fused=yes", "optim.fused is 'yes'; it takes true or false"),
        ("optim.learning_rate=fast", "optim.learning_rate is 'fast'; it takes a number"),
        ("optim.learning_rate=true", "optim.learning_rate is true; it takes a number"),
        ("optim.learning_rate=null", "optim.learning_rate is null; it takes a number"),
        ("adapter.rank=1.5", "adapter.rank is 1.5; it takes a whole number"),
        ("adapter.rank='8'", "adapter.rank is '8'; it takes a whole number"),
        ("adapter.path=3", "adapter.path is 3; it takes a path or null"),
        ("optim.betas=[0.9]", "optim.betas is [0.9]; it takes a list of 2 values"),
        ("optim.betas=[0.9, x]", "optim.betas[1] is 'x'; it takes a number"),
        ("judges=clip", "judges is 'clip'; it takes a list, each text"),
        ("optim=adam", "optim is 'adam'; it takes a block (learning_rate, betas, fused)"),
        ("model.sub=1", "override 'model.sub' goes into 'm', which is no block"),
        ("steps", "override 'steps' is no key=value"),
        ("model=[a", "override 'model=[a' line 1"),
        ("timesteps.low=0.5", "timesteps.name is missing; it takes one of uniform, normal"),
        (
            "timesteps.name=norml",
            "timesteps.name is 'norml'; it takes one of uniform, normal; did you mean 'normal'?",
        ),
        ("objective.name=dop", "objective.name is 'dop'; no objective is called 'dop'; there are dpo, kto"),
        ("objective=dpo", "objective is 'dpo'; it takes a block with a name"),
        ("objective.desirable=2", "unknown key 'objective.desirable'; objective (dpo) takes beta"),
        ("objective.beta=-1", "objective: beta is -1.0; it must be above 0"),
        ("terms=[{name: kto}, {name: dpo, bta: 1}]", "unknown key 'terms[1].bta'; did you mean 'beta'?"),
        ("limits={a: b}", "limits is {'a': 'b'}; it takes a block"),
    ],
)
def test_errors_name_key_value_and_remedy(override, message):
    text = error(override, model="m")
    assert text.startswith(message)
    assert "\n" not in text


def test_all_faults_are_told_at_once():
    lines = error("precision=x", "optim.zzz=1").splitlines()
    assert [line.split(";")[0] for line in lines] == ["unknown key 'optim.zzz'", "precision is 'x'"]


def test_missing_keys():
    with pytest.raises(ConfigError, match=r"^objective is missing; it takes a block"):
        load(Recipe, {}, [], UNIONS)
    with pytest.raises(ConfigError, match="objective has no name"):
        load(Recipe, {"objective": {"beta": 1.0}}, [], UNIONS)


def test_a_class_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match=r"objective\.name is 'x', which cannot be used as a block"):
        load(Recipe, {"objective": {"name": "x"}}, [], {"objective": lambda name: Optim})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: a\nmodel: b\n", "line 2 column 1: key 'model' is given twice"),
        ("optim: {fused: true, fused: false}", "key 'fused' is given twice"),
        ("{[a]: 1}", "line 1 column 2: a key is a list or a block"),
        ("optim: {{a: 1}: 1}", "a key is a list or a block"),
        ("model: [a\n", "line 2"),
        ("- a\n", "the recipe is ['a']; it takes a block"),
        ("model: !!python/name:os.system\n", "could not determine a constructor"),
    ],
)
def test_broken_files(text, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        make(text, tmp_path=tmp_path)
    assert message in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*none\.yaml"):
        load(Recipe, tmp_path / "none.yaml")


def test_anchors_may_be_overridden(tmp_path):
    text = "objective: {name: dpo}\noptim: &o {learning_rate: 1.0, fused: false}\n"
    text += "limits: {<<: {a: 1.0}, a: 2.0}\n"
    assert make(text, tmp_path=tmp_path).limits == {"a": 2.0}


def test_objects_made_in_python_are_taken_as_they_are():
    made = Dpo(beta=3.0)
    assert built(objective=made, adapter=Adapter(rank=1)).objective is made


def test_dump_loads_again(tmp_path):
    config = Recipe(
        objective=Kto(desirable=1e-5),
        model="1e-5",
        adapter=Adapter(reference="off", path=Path("a b")),
        timesteps=Normal(mean=-2.0),
        judges=("yes", "null", "1:30"),
        terms=(Dpo(), Kto()),
        limits={"a": 0.1},
    )
    text = dump(config, NAMES)
    assert "name: kto" in text
    assert make(text, tmp_path=tmp_path) == config
    assert make(dump(replace(config, adapter=None), NAMES), tmp_path=tmp_path).adapter is None


def test_dump_without_names_gives_addresses():
    text = dump(Recipe(objective=Dpo()))
    assert f"name: {Dpo.__module__}:Dpo" in text


@given(
    text=st.text(st.characters(codec="ascii", min_codepoint=32), max_size=6),
    number=st.floats(allow_nan=False),
)
def test_any_text_and_number_survive(text, number, tmp_path_factory):
    config = Recipe(objective=Dpo(), model=text, limits={"x": number})
    file = tmp_path_factory.mktemp("dump") / "recipe.yaml"
    file.write_text(dump(config, NAMES))
    assert load(Recipe, file, [], UNIONS) == config


def test_help_is_the_string_below_a_field():
    assert help_of(Optim) == {
        "learning_rate": "Peak learning rate; over two lines.",
        "betas": "",
        "fused": "",
    }
    assert help_of(Dpo)["beta"] == "Pull to the reference."


def test_options_list_keys_values_and_defaults():
    found = {o.key: o for o in options_of(Recipe)}
    assert found["optim.learning_rate"].help == "Peak learning rate; over two lines."
    assert found["optim.learning_rate"].default == "1e-05"
    assert found["objective"].default == "required"
    assert found["precision"].takes == "one of bf16, fp16, fp32"
    assert found["adapter.rank"].takes == "a whole number"
