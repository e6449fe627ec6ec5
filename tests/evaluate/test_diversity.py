"""Diversity against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from diffalign.evaluate.diversity import diversity, pairwise_distance, pixel_distance, vendi


def test_pairwise_distance_by_hand() -> None:
    features = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    assert pairwise_distance(features).tolist() == [(5 + 4 + 3) / 3, 0.0]


def test_pixel_distance_is_in_units_of_a_pixel() -> None:
    black_and_white = torch.stack([torch.zeros(3, 5, 7), torch.ones(3, 5, 7)])[None]
    assert pixel_distance(black_and_white).tolist() == pytest.approx([1.0])
    noise = torch.rand(2, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert pixel_distance(noise).tolist() == pytest.approx([1 / math.sqrt(6)] * 2, rel=0.02)


def test_vendi_counts_different_pictures() -> None:
    same, apart = torch.ones(4, 8), torch.eye(8)[:4]
    twice_two = torch.eye(8)[[0, 0, 1, 1]]
    assert vendi(torch.stack([same, apart, twice_two])).tolist() == pytest.approx([1.0, 4.0, 2.0])
    assert vendi(5 * apart[None]).item() == pytest.approx(4.0)  # lengths do not count


def test_vendi_of_two_at_an_angle() -> None:
    cosine = 0.6
    features = torch.tensor([[[1.0, 0.0], [cosine, 0.8]]])
    high, low = (1 + cosine) / 2, (1 - cosine) / 2
    expected = math.exp(-high * math.log(high) - low * math.log(low))
    assert vendi(features).item() == pytest.approx(expected, rel=1e-6)
    assert vendi(features.half().double()).dtype == torch.float64


def test_diversity_gives_the_block_of_the_report() -> None:
    found = diversity(torch.eye(3)[None], torch.zeros(1, 3, 3, 4, 4))
    assert found == pytest.approx({"feature_distance": math.sqrt(2), "pixel_distance": 0.0, "vendi": 3.0})


def test_clear_errors() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds"):
        pairwise_distance(torch.zeros(4, 1, 8))
    with pytest.raises(ValueError, match=r"shape \(4, 8\)"):
        vendi(torch.zeros(4, 8))
    with pytest.raises(ValueError, match="prompt 1, seed 0 are all 0"):
        vendi(torch.tensor([[[1.0], [1.0]], [[0.0], [1.0]]]))
    with pytest.raises(ValueError, match="not finite"):
        pairwise_distance(torch.full((1, 2, 3), math.nan))
