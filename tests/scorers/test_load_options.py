"""Options of scorers: declared, checked in one place, and each of them does what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import scorers
from scorers import Spec
from scorers.clipscore import ClipScore, ClipScoreOptions
from scorers.denscore import Denscore
from scorers.hps import HpsV2
from scorers.jpeg import Jpeg, JpegOptions
from scorers.load_options import LoadOptions, PictureOptions, option_type, parse_options
from scorers.pickscore import PickScore, PickScoreOptions
from scorers.unifiedreward import UnifiedRewardOptions
from tests.scorers.test_open_clip import golden_model, letters


def test_options_reach_the_scorer_and_its_record(folder: Path) -> None:
    x = torch.rand(2, 3, 50, 40)
    plain = scorers.load("pickscore", folder)
    chosen = scorers.load("pickscore", folder, options={"normalise": "div26", "preprocess": "exact"})
    assert isinstance(plain, PickScore)
    assert isinstance(chosen, PickScore)
    wanted = plain.with_preprocess("exact").score_tensor(x, ["a", "b"]) / 26
    torch.testing.assert_close(chosen.score_tensor(x, ["a", "b"]), wanted)
    assert chosen.range == (-100 / 26, 100 / 26)
    assert chosen.describe()["option.normalise"] == "div26"
    assert "option.normalise" not in plain.describe()
    same = scorers.load_spec(f"pickscore={folder}?normalise=div26&preprocess=exact")
    assert torch.equal(same.score_tensor(x, ["a", "b"]), chosen.score_tensor(x, ["a", "b"]))
    kept = scorers.load("denscore", folder, options={"keep": "0.9"})
    assert isinstance(kept, Denscore)
    assert kept.keep == 0.9


def test_a_wrong_option_fails_before_weights_are_read() -> None:
    with pytest.raises(ValueError, match=r"no option 'normalize'; did you mean 'normalise'\? \(it has: pre"):
        scorers.load("pickscore", "nowhere", options={"normalize": "cos"})
    with pytest.raises(ValueError, match=r"option 'normalise': .*'none', 'cos' or 'div26', got 'div27'"):
        scorers.load("pickscore", "nowhere", options={"normalise": "div27"})
    with pytest.raises(ValueError, match=r"no option 'form' \(it has: none\)"):
        scorers.load("shapes-large", options={"form": "pair"})
    with pytest.raises(ValueError, match="quality is 0"):
        scorers.load("jpeg", options={"quality": "0"})
    with pytest.raises(ValueError, match="no option 'patiense'; did you mean 'patience'"):
        scorers.load("http://127.0.0.1:9", options={"patiense": 3})


def test_texts_become_what_the_option_is() -> None:
    given = {"prefix": "a photo of ", "weight": "2.5", "clamp": "true"}
    assert parse_options("clipscore", ClipScoreOptions, given) == ClipScoreOptions(
        prefix="a photo of ", weight=2.5, clamp=True
    )
    assert parse_options("jpeg", JpegOptions, {"quality": "3"}) == JpegOptions(quality=3)
    with pytest.raises(ValueError, match=r"option 'quality': .*got 'high'"):
        parse_options("jpeg", JpegOptions, {"quality": "high"})
    with pytest.raises(TypeError, match="jpeg takes JpegOptions, not PickScoreOptions"):
        Jpeg().take_options(PickScoreOptions())


@pytest.mark.slow
def test_presets_and_conventions_are_changed_by_options() -> None:
    x = torch.rand(1, 3, 60, 50)
    clip = ClipScore(golden_model(), letters)
    cos = clip.score_tensor(x, ["a cat"])
    clip.take_options(ClipScoreOptions(weight=3.0, prefix="a "))
    assert not torch.allclose(clip.score_tensor(x, ["a cat"]), 3 * cos)
    clip.take_options(ClipScoreOptions(weight=3.0))
    torch.testing.assert_close(clip.score_tensor(x, ["a cat"]), 3 * cos)
    assert clip.range == (-3.0, 3.0)
    hps = HpsV2(golden_model(), letters)
    modern = hps.score_tensor(x, ["a cat"])
    hps.take_options(parse_options("hpsv2", option_type(HpsV2), {"antialias": "reference-2023"}))
    assert not torch.equal(hps.score_tensor(x, ["a cat"]), modern)
    assert hps.describe()["preprocess"].endswith("reference-2023")


def test_every_scorer_declares_options_that_have_defaults() -> None:
    found = {}
    for name in scorers.names():
        kind = option_type(scorers.catalogue.get(name))
        assert issubclass(kind, LoadOptions), name
        found[name] = parse_options(name, kind, {})
    assert isinstance(found["imagereward"], PictureOptions)
    assert found["unifiedreward"] == UnifiedRewardOptions(questions="overall", soft=False)


def test_options_of_parts(tmp_path: Path, folder: Path) -> None:
    part = {"scorer": "pickscore", "weights": str(folder)}
    parts = {"a": {**part, "options": {"normalise": "cos"}}, "b": part}
    (tmp_path / "sum.json").write_text(json.dumps({"parts": parts}))
    found = scorers.load("sum", tmp_path / "sum.json")
    assert [found.parts[n].normalise for n in "ab"] == ["cos", "none"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pickscore", Spec(name="pickscore")),
        ("pickscore=a/b=c.pt", Spec(name="pickscore", weights="a/b=c.pt")),
        ("vqascore?form=likelihood", Spec(name="vqascore", options={"form": "likelihood"})),
        (
            "clipscore=w?prefix=a photo of &weight=2.5",
            Spec(name="clipscore", weights="w", options={"prefix": "a photo of ", "weight": "2.5"}),
        ),
        ("mod.ule:Class=w", Spec(name="mod.ule:Class", weights="w")),
        ("http://127.0.0.1:8711/a=b?c=d", Spec(name="http://127.0.0.1:8711/a=b?c=d")),
    ],
)
def test_a_scorer_in_one_word(text: str, wanted: Spec) -> None:
    assert Spec.parse(text) == wanted
    assert str(wanted) == text


def test_wrong_words_are_refused() -> None:
    assert str(Spec.parse("jpeg?quality=9").with_weights("w")) == "jpeg=w?quality=9"
    with pytest.raises(ValueError, match=r"has weights already \(v\)"):
        Spec.parse("jpeg=v").with_weights("w")
    with pytest.raises(ValueError, match="the option 'quality' twice"):
        Spec.parse("jpeg?quality=9&quality=8")
    with pytest.raises(ValueError, match="names no scorer"):
        Spec.parse("=weights")
