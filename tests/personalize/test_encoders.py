"""User encoders: what they return, what must not matter to them, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from diffalign.config import ConfigError, load
from diffalign.personalize.encoders import (
    About,
    EncoderOptions,
    Examples,
    Profile,
    encoders,
    make_options,
    names,
    options_from_json,
    options_to_json,
)
from diffalign.personalize.encoders.about import pad_examples
from diffalign.personalize.encoders.direction import parse_direction, relabel, sample_directions

PEOPLE, VOTES, FEATURE = 3, 5, 12
SHAPE = {"tokens": 4, "width": 6}
SMALL = {"feature": FEATURE, "inner": 8, "depth": 2, "heads": 2, **SHAPE}
OPTIONS = {
    "table": SHAPE,
    "few_shot": SMALL,
    "profile": {**SMALL, "positions": 7},
    "composition": {},
    "direction": {**SHAPE, "scorers": ("hps", "aesthetic"), "hidden": 8},
}


def options(name: str, **changes: object) -> EncoderOptions:
    given = dict(OPTIONS[name])
    if name == "composition":
        given["encoder"] = make_options("few_shot", SMALL)
    return make_options(name, given | changes)


def unit(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape), dim=-1)


def examples() -> Examples:
    mask = torch.ones(PEOPLE, VOTES, dtype=torch.bool)
    mask[1, 3:] = False
    sides = [unit(PEOPLE, VOTES, FEATURE) for _ in range(3)]
    return Examples(prompt=sides[0], winner=sides[1], loser=sides[2], mask=mask)


def about() -> About:
    torch.manual_seed(1)
    mask = torch.ones(PEOPLE, 7, dtype=torch.bool)
    mask[2, 4:] = False
    profile = Profile(states=torch.randn(PEOPLE, 7, FEATURE), mask=mask)
    direction = unit(PEOPLE, 2)
    return About(rows=torch.tensor([2, 0, 1]), examples=examples(), profile=profile, direction=direction)


def encoder(name: str, **changes: object):
    torch.manual_seed(0)
    return options(name, **changes).make(PEOPLE)


def test_all_encoders_are_tried() -> None:
    assert names() == sorted(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_tokens_differ_between_people_and_reach_the_weights(name: str) -> None:
    found = encoder(name)
    tokens = found(about())
    assert tokens.shape == (PEOPLE, 4, 6)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    tokens.square().sum().backward()
    missing = [n for n, p in found.named_parameters() if p.grad is None and not n.endswith("nobody")]
    assert missing == []
    alone = encoder(name)(about().take(torch.tensor([1])))
    torch.testing.assert_close(alone[0], tokens[1])


@pytest.mark.parametrize("name", OPTIONS)
def test_rows_that_are_dropped_are_nobody(name: str) -> None:
    found = encoder(name)
    tokens = found(about(), torch.tensor([True, False, True]))
    assert torch.equal(tokens[1], found.nobody)
    torch.testing.assert_close(tokens[0], found(about())[0])
    tokens.sum().backward()
    assert found.nobody.grad.abs().max() > 0


@pytest.mark.parametrize("name", OPTIONS)
def test_one_token_is_refused_with_the_reason(name: str) -> None:
    changes = {"encoder": make_options("table")} if name == "composition" else {"tokens": 1}
    with pytest.raises(ValueError, match="has a row for each person" if name == "composition" else "softmax"):
        options(name, **changes)
    with pytest.raises(ValueError, match=r"table\.tokens is 33; it must be from 2 to 32"):
        make_options("table", {"tokens": 33})


@pytest.mark.parametrize("name", OPTIONS)
def test_options_go_through_json(name: str) -> None:
    given = options(name)
    assert options_from_json(options_to_json(given)) == given
    with pytest.raises(TypeError, match="has no option 'wdth'; it takes"):
        make_options(name, {"wdth": 3})


@dataclass(kw_only=True)
class Recipe:
    encoder: EncoderOptions


def test_encoders_are_blocks_of_a_recipe() -> None:
    unions = {"encoder": encoders.get, "encoder.encoder": encoders.get}
    found = load(Recipe, {"encoder": {"name": "few_shot", "inner": 64}}, ["encoder.heads=4"], unions)
    assert found.encoder == make_options("few_shot", {"inner": 64, "heads": 4})
    nested = {"encoder": {"name": "composition", "encoder": {"name": "profile", "tokens": 4}}}
    assert load(Recipe, nested, (), unions).encoder.tokens == 4
    with pytest.raises(ConfigError, match="softmax"):
        load(Recipe, {"encoder": {"name": "table", "tokens": 1}}, (), unions)
    with pytest.raises(ValueError, match=r"composition\.tokens is 5; it must be 8, as in the encoder within"):
        make_options("composition", {"tokens": 5})


@pytest.mark.parametrize("name", ["few_shot", "composition"])
def test_votes_are_a_set_and_padding_is_nothing(name: str) -> None:
    found, given = encoder(name), about()
    votes = given.examples
    order = torch.tensor([4, 1, 0, 3, 2])
    shuffled = {k: getattr(votes, k)[:, order] for k in ("prompt", "winner", "loser", "mask")}
    padded = {
        k: torch.cat([getattr(votes, k), torch.full((PEOPLE, 2, FEATURE), float("nan"))], 1)
        for k in ("prompt", "winner", "loser")
    }
    padded["mask"] = torch.cat([votes.mask, torch.zeros(PEOPLE, 2, dtype=torch.bool)], 1)
    expected = found(given)
    for other in (shuffled, padded):
        again = found(replace(given, examples=Examples(**other)))
        torch.testing.assert_close(again, expected, rtol=0, atol=1e-5)
    alone = given.take(torch.tensor([1]))
    cut = {k: getattr(alone.examples, k)[:, :3] for k in ("prompt", "winner", "loser", "mask")}
    torch.testing.assert_close(
        found(replace(alone, examples=Examples(**cut)))[0], expected[1], rtol=0, atol=1e-5
    )


def test_the_other_way_round_is_another_person() -> None:
    found, given = encoder("few_shot"), about()
    swapped = found(replace(given, examples=given.examples.swapped()))
    assert (swapped - found(given)).abs().amax((1, 2)).min() > 1e-3


def test_nobody_knows_someone_without_votes_or_row() -> None:
    given = about()
    mask = given.examples.mask.clone()
    mask[0] = False
    found = encoder("few_shot")
    silent = found.encoded(replace(given, examples=replace(given.examples, mask=mask)))
    assert torch.equal(silent.tokens[0], found.nobody)
    assert silent.known.tolist() == [False, True, True]
    table = encoder("table")
    assert torch.equal(table(About(rows=torch.tensor([-1]))), table.nobody[None])
    empty = options("table").make(0)
    assert torch.equal(empty(About(rows=torch.tensor([-1]))), empty.nobody[None])


def test_a_variational_head_draws_while_training_and_has_the_divergence_by_hand() -> None:
    found = encoder("few_shot", variational=True)
    given = about()
    first, second = found(given), found(given)
    assert (first - second).abs().max() > 1e-3
    found.eval()
    assert torch.equal(found(about()), found(about()))
    with torch.no_grad():  # mean 2 and variance 1 in each of the 8 dimensions: 8 (4 + 1 - 1 - 0) / 2 nats
        found.posterior.weight.zero_()
        found.posterior.bias.copy_(torch.tensor([2.0] * 8 + [0.0] * 8))
    torch.testing.assert_close(found.encoded(about()).kl, torch.full((PEOPLE,), 16.0))
    with torch.no_grad():  # a variance of e^9 is held at e
        found.posterior.bias[8:] = 9.0
    expected = 8 * 0.5 * (4 + torch.e - 1 - 1)
    torch.testing.assert_close(found.encoded(about()).kl, torch.full((PEOPLE,), expected))
    dropped = found.encoded(about(), torch.tensor([True, False, True]))
    assert dropped.kl[1] == 0


def test_prototypes_make_people_points_of_a_simplex() -> None:
    found = encoder("table", prototypes=2)
    with torch.no_grad():
        found.people[0] = torch.tensor([30.0, -30.0])
        found.people[1] = torch.tensor([1.0, 1.0])
    tokens = found(About(rows=torch.tensor([0, 1])))
    torch.testing.assert_close(tokens[0], found.prototypes[0])
    torch.testing.assert_close(tokens[1], found.prototypes.mean(0))
    assert found.people.shape == (PEOPLE, 2)
    with pytest.raises(ValueError, match="prototypes is 1; it must be 0, or 2 and more"):
        options("table", prototypes=1)


def test_weights_hold_no_person() -> None:
    for name in ("table", "composition"):
        assert "people" not in encoder(name).weights()
        assert "people" in encoder(name).state_dict()


def test_a_composition_starts_as_the_encoder_within() -> None:
    found = encoder("composition")
    expected = found.encoder.encode(about()).tokens
    torch.testing.assert_close(found(about()), expected)
    with torch.no_grad():
        found.people[2] += 1.0
    torch.testing.assert_close(found(about()), expected + torch.tensor([1.0, 0.0, 0.0])[:, None, None])
    someone = replace(about(), rows=torch.tensor([-1, 0, 1]))
    torch.testing.assert_close(found(someone), expected)
    assert found.options.needs == {"rows", "examples"}


def test_places_of_a_profile_count_unless_it_is_a_set() -> None:
    given = about().take(torch.tensor([0]))
    turned = replace(given, profile=replace(given.profile, states=given.profile.states.flip(1)))
    ordered, bag = encoder("profile"), encoder("profile", positions=0)
    assert (ordered(turned) - ordered(given)).abs().max() > 1e-4
    torch.testing.assert_close(bag(turned), bag(given), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="have 7 states and the user encoder tells 3 places apart"):
        encoder("profile", positions=3)(given)


def test_directions_are_read_drawn_and_relabel_pairs() -> None:
    torch.testing.assert_close(parse_direction("b=3, a=-4", ("a", "b", "c")), torch.tensor([-0.8, 0.6, 0.0]))
    drawn = sample_directions(400, 3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(400))
    assert drawn.min() >= 0
    assert 0.2 < (drawn.max(1).values == 1).float().mean() < 0.3
    signed = sample_directions(400, 3, torch.Generator().manual_seed(0), signed=True)
    assert (signed.mean(0).abs() < 0.15).all()
    assert signed.min() == -1
    gaps = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    found = relabel(gaps, torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    torch.testing.assert_close(found, torch.tensor([1.0, -0.2]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d=1", "does not name one of a, b"),
        ("a=1,a=2", "for the first time"),
        ("a=x", "'x' is no finite number"),
        ("a=0", "points nowhere"),
        ("", "points nowhere"),
    ],
)
def test_wrong_directions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_direction(text, ("a", "b"))


def test_votes_of_different_numbers_are_padded() -> None:
    one, two = (tuple(unit(3, FEATURE)) for _ in range(2))
    found = pad_examples([[one, two], [], [two]])
    assert found.mask.tolist() == [[True, True], [False, False], [True, False]]
    assert torch.equal(found.loser[2, 0], two[2])
    with pytest.raises(ValueError, match="none of these people has a vote"):
        pad_examples([[], []])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="few_shot needs examples of every person"):
        encoder("few_shot")(About(rows=torch.tensor([0])))
    with pytest.raises(ValueError, match="votes have 12 features and the user encoder few_shot takes 16"):
        encoder("few_shot", feature=16)(about())
    with pytest.raises(ValueError, match=r"the mask of votes is \(3, 4\) torch.bool; it must be \(3, 5\)"):
        replace(examples(), mask=torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="prompts, winners and losers must each be"):
        replace(examples(), prompt=unit(PEOPLE, FEATURE))
    with pytest.raises(ValueError, match=r"direction\.scorers is"):
        make_options("direction", {"scorers": ("a", "a")})
    with pytest.raises(ValueError, match="inner is 9; it must be a multiple of 2 heads"):
        options("few_shot", inner=9)
