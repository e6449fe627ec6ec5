"""GenEval and TIAM on pictures of the shapes world, by the oracle as the detector."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import scorers
from diffalign.world.detector import ShapesDetector, geneval_task, shape_anchors, tiam_asked
from diffalign.world.grammar import COLOURS, Prompt, parse, sample_prompts
from diffalign.world.oracle import measure, obeys
from diffalign.world.raters import Population
from diffalign.world.shapes import draw
from scorers.detect import detectors
from scorers.geneval import GenEval
from scorers.tiam import Tiam

GENEVAL, TIAM = "diffalign.world.detector:geneval", "diffalign.world.detector:tiam"


@pytest.fixture(scope="module")
def shown() -> tuple[Tensor, list[str]]:
    """Rendered pictures of 24 prompts, half of them of two objects."""
    rng = np.random.default_rng(3)
    prompts = sample_prompts(24, rng, double_share=0.5)
    return draw(prompts, rng), [str(p) for p in prompts]


def test_the_oracle_is_a_detector(shown: tuple[Tensor, list[str]]) -> None:
    pictures, prompts = shown
    loader = detectors.get("diffalign.world.detector:ShapesDetector")
    detector = loader.load(None, device="cpu", dtype=torch.float32)
    for found, text, picture in zip(detector.detect(pictures), prompts, pictures, strict=False):
        prompt = parse(text)
        assert sorted(d.label for d in found) == sorted(prompt.shapes)
        assert sorted(d.colour or "" for d in found) == sorted(prompt.colours)
        for d in found:
            left, top, right, bottom = (int(v) for v in d.box)
            assert d.mask is not None
            assert d.mask[top:bottom, left:right].sum() == d.mask.sum() > 50
            assert 0.8 <= d.confidence <= 1
            assert picture.shape[1:] == d.mask.shape


def test_geneval_agrees_with_the_oracle(shown: tuple[Tensor, list[str]]) -> None:
    pictures, prompts = shown
    scorer = scorers.load(GENEVAL)
    assert isinstance(scorer, GenEval)
    right = scorer(pictures, prompts)
    assert right.score.mean() == 1
    wrong = prompts[1:] + prompts[:1]
    found = scorer(pictures, wrong)
    expected = obeys(measure(pictures), [parse(p) for p in wrong]).all
    # GenEval has no word for the background and cannot tell two objects of one shape apart.
    spoken = torch.tensor([_all_said(parse(p)) for p in wrong])
    assert spoken.any()
    assert torch.equal(found.score.bool()[spoken], expected[spoken])
    assert found.score.mean() < 0.2
    assert (found.dims["met"] >= found.score).all()


def _all_said(prompt: Prompt) -> bool:
    return prompt.background is None and len(set(prompt.shapes)) == len(prompt.shapes)


def test_relations_are_read_off_the_picture() -> None:
    rng = np.random.default_rng(0)
    texts = [f"a red circle {r} a blue square" for r in ("left of", "right of", "above", "below")]
    pictures = draw([parse(t) for t in texts], rng)
    scorer = scorers.load(GENEVAL)
    table = torch.stack([scorer.score_tensor(pictures, [t] * 4) for t in texts])
    assert torch.equal(table, torch.eye(4))
    others = [texts[i].replace("red", "green") for i in range(4)]
    assert scorer.score_tensor(pictures, others).tolist() == [0.0] * 4


def test_tiam_asks_for_shapes_in_their_colours(shown: tuple[Tensor, list[str]]) -> None:
    pictures, prompts = shown
    scorer = scorers.load(TIAM)
    assert isinstance(scorer, Tiam)
    right = scorer(pictures, prompts)
    assert right.dims["detected"].mean() == 1
    assert right.score.mean() > 0.9  # shades vary, and so a few have another anchor nearest
    recoloured = [_recoloured(p) for p in prompts]
    found = scorer(pictures, recoloured)
    assert found.dims["detected"].mean() == 1
    assert found.score.sum() <= 1
    single = torch.cat([scorer.score_tensor(pictures[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    assert torch.equal(single, right.score[:4])


def _recoloured(text: str) -> str:
    """The first object in a colour of the opposite side of the wheel."""
    prompt = parse(text)
    far = [c for c in COLOURS[::2] if c not in (*prompt.colours, prompt.background)]
    return text.replace(prompt.colours[0], far[0], 1)


def test_anchors_tell_the_colours_apart() -> None:
    anchors = torch.tensor(list(shape_anchors().values()))
    distance = torch.cdist(anchors, anchors) + 100 * torch.eye(len(anchors))
    assert list(shape_anchors()) == list(COLOURS)
    assert distance.min() > 20  # in units of Lab; 2.3 is what an eye just sees


def test_tasks_of_sentences() -> None:
    task = geneval_task("a red circle left of a blue square")
    assert [(i.label, i.colour, i.position) for i in task.include] == [
        ("square", "blue", None),
        ("circle", "red", ("left of", 0)),
    ]
    assert geneval_task("a red circle").exclude[0] == ("circle", 2)
    assert geneval_task("a red circle above a blue circle").include[0].count == 2
    assert tiam_asked("a red circle above a blue circle").colours == ("red", "blue")
    with pytest.raises(ValueError, match="no prompt of the shapes world"):
        geneval_task("a dog")


def test_nothing_is_found_where_nothing_is() -> None:
    assert ShapesDetector().detect(torch.full((2, 3, 64, 64), 0.5)) == [[], []]
    with pytest.raises(ValueError, match="the oracle reads"):
        ShapesDetector().detect(torch.zeros(1, 3, 32, 32))


def test_a_person_of_a_population_is_a_scorer(shown: tuple[Tensor, list[str]]) -> None:
    pictures, prompts = (part[:8] for part in shown)
    people = Population(seed=3).raters()
    parsed = [parse(p) for p in prompts]
    for number in (0, 7):
        scorer = scorers.load(f"diffalign.world.scorers:member_3_{number}")
        torch.testing.assert_close(scorer(pictures, prompts).score, people[number].score(pictures, parsed))
    assert scorer.name == "shapes-member-3-7"
    with pytest.raises(ValueError, match="no person 20"):
        scorers.load("diffalign.world.scorers:member_3_20")
    with pytest.raises(scorers.RegistryError, match="has no 'member_3_x'"):
        scorers.load("diffalign.world.scorers:member_3_x")
