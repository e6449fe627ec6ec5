"""Judges of VPL's type: read from a part of somebody's votes and tested on the rest."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.data.split import split_by
from diffalign.personalize.judge import Judges, train_judges
from diffalign.personalize.vpl import Vpl, VplOptions, embed_votes
from scorers.pickscore import PickScore
from scorers.votes import Vote
from tests.personalize.test_judge import picture, votes
from tests.scorers.conftest import tiny_clip, tiny_tokenizer

OPTIONS = VplOptions(width=16, depth=1, steps=40, learning_rate=1e-2, seed=3)
SEEN = [v for i in range(12) for v in votes(f"p{i}", i % 2 == 0, 20, i)]
ASKED = [*votes("red", True, 40, 100), *votes("blue", False, 40, 111)]


@pytest.fixture(scope="module")
def backbone() -> PickScore:
    return PickScore(tiny_clip(), tiny_tokenizer())


@pytest.fixture(scope="module")
def judges(backbone: PickScore) -> Judges:
    return train_judges(backbone, SEEN, ASKED, ["other"], OPTIONS)


def vpl(judges: Judges) -> Vpl:
    assert isinstance(judges.reward, Vpl)
    return judges.reward


def test_people_of_opposite_tastes_have_opposite_judges(judges: Judges) -> None:
    assert min(judges.accuracy.values()) > 0.8
    assert judges.mean_accuracy == pytest.approx(sum(judges.accuracy.values()) / 2)
    pictures = [picture(0.9), picture(0.1)]
    red, blue = (judges.of(name)(pictures).score for name in ("red", "blue"))
    assert red[0] > red[1]
    assert blue[0] < blue[1]


def test_judges_are_the_same_whatever_the_votes_say_that_they_are_measured_on(
    backbone: PickScore, judges: Judges
) -> None:
    rest, shown = split_by(ASKED, lambda v: v.prompt, OPTIONS.fitted, OPTIONS.seed)
    assert rest
    assert shown
    turned = [v._replace(label=1 - v.label) for v in rest]
    state = torch.get_rng_state()
    again = train_judges(backbone, SEEN, [*turned, *shown], [], OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    for name, accuracy in judges.accuracy.items():
        assert torch.equal(vpl(again).people[name], vpl(judges).people[name])
        assert again.accuracy[name] == pytest.approx(1 - accuracy)


def test_a_score_is_the_product_of_features_and_the_persons_weights(judges: Judges) -> None:
    x = torch.stack([picture(0.3), picture(0.8)]).requires_grad_()
    judge = judges.of("red")
    features = vpl(judges).backbone.encode_images(x)
    found = judge.score_tensor(x, ["a", "b"])
    torch.testing.assert_close(found, math.sqrt(16) * features @ vpl(judges).people["red"])
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_many_votes_are_the_mean_of_several_descriptions(judges: Judges, backbone: PickScore) -> None:
    given = votes("x", True, 12, 5)
    features = list(embed_votes(given, [(f"{i} a", f"{i} b") for i in range(12)], backbone).values())
    parts = [vpl(judges).weights_by(features[i::2]) for i in range(2)]
    torch.testing.assert_close(vpl(judges).weights_by(features), (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(vpl(judges).weights_by(features[:8]), vpl(judges).weights_by(features[7::-1]))


def test_features_of_votes_name_the_winner_first_and_leave_ties_out(backbone: PickScore) -> None:
    a, b = picture(0.2), picture(0.7)
    given = [Vote(a, b, "one", 1.0), Vote(a, b, "two", 0.5), Vote(a, b, "one", 0.2)]
    found = embed_votes(given, [("a", "b")] * 3, backbone)
    first, second = backbone.encode_images(torch.stack([a, b]))
    assert list(found) == [0, 2]
    torch.testing.assert_close(found[0][1:], (first, second))
    torch.testing.assert_close(found[2][1:], (second, first))
    torch.testing.assert_close(found[0][0], backbone.encode_prompts(["one"])[0])


def test_what_a_judge_cannot_do_is_refused(judges: Judges, backbone: PickScore) -> None:
    with pytest.raises(ValueError, match="knows no 'anna' among its 2 people"):
        judges.of("anna")
    reward = vpl(judges)
    with pytest.raises(ValueError, match="for_user"):
        reward.score_tensor(picture(0.1)[None], ["a"])
    with pytest.raises(ValueError, match="'red' already"):
        reward.fit_user("red", [picture(0.1)], [picture(0.2)], ["a"], [1.0])
    with pytest.raises(ValueError, match="none of the 1 votes that should describe 'tied'"):
        reward.fit_user("tied", [picture(0.1)], [picture(0.2)], ["a"], [0.5])
    with pytest.raises(ValueError, match="do not match"):
        reward.fit_user("odd", [picture(0.1)], [], ["a"], [1.0])
    with pytest.raises(ValueError, match="nothing to foretell"):
        train_judges(backbone, votes("one", True, 1, 0), ASKED, [], OPTIONS)
    with pytest.raises(ValueError, match="inner is 12"):
        VplOptions(width=12)
    few = train_judges(backbone, SEEN, votes("few", True, 1, 3), [], VplOptions(width=8, steps=1))
    assert math.isnan(few.accuracy["few"])
