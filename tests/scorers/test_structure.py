"""GPM, DRM and NIMA: published numbers, circles, users, distributions, saving, gradients, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import scorers
from scorers.drm import DRM, DRMHeads
from scorers.gpm import GPM, GPMHead, GPMOptions
from scorers.losses import pair_cross_entropy
from scorers.losses_structure import gpm_score
from scorers.nima import NIMA, NIMAOptions, moments
from scorers.pickscore import PickScore
from scorers.protocol import Scorer
from tests.scorers.conftest import tiny_clip, tiny_tokenizer
from tests.scorers.test_losses import golden

PROMPTS = ["a cat", "a red dog", "trees"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def encoder() -> PickScore:
    return PickScore(tiny_clip(), tiny_tokenizer())


@pytest.fixture(scope="module")
def gpm(encoder: PickScore) -> GPM:
    torch.manual_seed(0)
    return GPM.create(encoder, GPMOptions(planes=2, gated=True))


@pytest.fixture(scope="module")
def drm(encoder: PickScore) -> DRM:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (torch.randn(60, 32, generator=generator) for _ in range(2))
    return DRM(encoder, DRMHeads.fit(chosen + 0.3, rejected, 4))


@pytest.fixture(scope="module")
def nima(encoder: PickScore) -> NIMA:
    torch.manual_seed(0)
    return NIMA.create(encoder)


def pictures(n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 40, 32, generator=torch.manual_seed(1))


def test_gpm_gate_of_the_published_code() -> None:
    data = golden("gpm")
    head = GPMHead(10, 10, GPMOptions(planes=3, normalise=True, gated=True))
    head.load_state_dict({"value.weight": data["gate_value_head"], "prompt.weight": data["gate_prompt_head"]})
    gate = head.gate(data["gate_prompt_hidden"])
    score = gpm_score(data["gate_emb_chosen"], data["gate_emb_rejected"], gate)
    torch.testing.assert_close(score, data["gate_score"], **CLOSE)
    v = head.embed(torch.randn(2, 10))
    torch.testing.assert_close(v.norm(dim=1), torch.ones(2))


def test_gpm_compares_antisymmetrically_and_in_batches(gpm: GPM) -> None:
    x, y = pictures(6).chunk(2)
    found = gpm.compare(x, y, PROMPTS)
    turned = gpm.compare(y, x, PROMPTS)
    torch.testing.assert_close(found.logit, -turned.logit, **CLOSE)
    torch.testing.assert_close(found.logit.sigmoid(), found.prob)
    assert len(set(found.logit.tolist())) == 3
    single = torch.cat([gpm.compare(x[i : i + 1], y[i : i + 1], PROMPTS[i]).logit for i in range(3)])
    torch.testing.assert_close(found.logit, single, rtol=0, atol=1e-6)
    mixed = gpm.compare([x[0], torch.rand(3, 50, 50)], [torch.rand(3, 60, 20), y[0]], "a cat", chunk=1)
    assert mixed.logit.shape == (2,)
    matrix = gpm.matrix(x, "a cat")
    torch.testing.assert_close(matrix[0, 1], gpm.compare(x[0], x[1], "a cat").logit[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(matrix, -matrix.T)
    scores = gpm.group(x, "a cat")
    torch.testing.assert_close(scores, matrix.sum(1) / 2)
    assert float(gpm.group(x, "a cat", how="von-neumann").sum()) == pytest.approx(1)


def test_gpm_has_no_scalar(gpm: GPM) -> None:
    assert isinstance(gpm, Scorer)
    assert gpm.kind == "pairwise"
    with pytest.raises(TypeError, match="use compare"):
        gpm(pictures(), PROMPTS)
    with pytest.raises(ValueError, match="at least two pictures"):
        gpm.group(pictures(1), "a cat")
    with pytest.raises(ValueError, match="how must be"):
        gpm.group(pictures(), "a cat", how="best")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 pictures cannot be compared with 2"):
        gpm.compare(pictures(3), pictures(2), "a cat")
    with pytest.raises(ValueError, match="tau > 0"):
        GPMOptions(tau=0)


def test_gpm_learns_a_circle_that_no_scalar_can_hold() -> None:
    torch.manual_seed(0)
    items = torch.randn(3, 6)  # rock, paper, scissors
    first, second = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    head = GPMHead(6, 6, GPMOptions(planes=1))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        v = head.embed(items)
        loss = pair_cross_entropy(gpm_score(v[first], v[second]) / 0.1, torch.ones(3)).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    v = head.embed(items)
    assert (gpm_score(v[first], v[second]) > 0).all()
    assert float(loss.detach()) < 0.2


def test_drm_heads_of_the_published_code() -> None:
    data = golden("drm")
    chosen, rejected = data["embeddings_chosen_rejected"].unbind(1)
    heads = DRMHeads.fit(chosen, rejected, 5)
    sign = (heads.components * data["components"]).sum(1)
    torch.testing.assert_close(sign.abs(), torch.ones(5), **CLOSE)
    torch.testing.assert_close(heads.mean, data["mean"], **CLOSE)
    torch.testing.assert_close(heads.variance, data["explained_variance"], rtol=1e-5, atol=1e-5)
    heads.components = data["components"]  # the published signs
    torch.testing.assert_close(
        heads.scores(data["embeddings_chosen_rejected"])[..., 1:], data["head_scores"], rtol=1e-5, atol=1e-5
    )
    shared = heads.scores(chosen - rejected)[:, 0]
    torch.testing.assert_close(shared.mean(), heads.mean.norm(), **CLOSE)  # centring did not lose it


def test_drm_finds_a_users_taste_from_a_few_votes() -> None:
    generator = torch.Generator().manual_seed(0)
    taste = torch.linalg.qr(torch.randn(12, 3, generator=generator))[0].T  # three tastes in 12 dimensions
    who = torch.randint(3, (400,), generator=generator)
    sign = torch.randint(2, (400, 1), generator=generator) * 2 - 1  # half of the people want the opposite
    noise = 0.3 * torch.randn(400, 12, generator=generator)
    d = sign * taste[who] * torch.tensor([3.0, 2.0, 1.0])[who][:, None] + noise
    heads = DRMHeads.fit(d, torch.zeros_like(d), 3)
    align = (heads.components @ taste.T).abs()
    assert (align.diagonal() > 0.9).all()
    few = -taste[1] * 2 + 0.3 * torch.randn(8, 12, generator=generator)  # eight votes of one user
    weights = heads.weigh(few, torch.zeros_like(few))
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    fresh = -taste[1] * 2 + 0.3 * torch.randn(200, 12, generator=generator)
    agreed = (heads.reward(fresh, weights) > 0).float().mean()
    assert agreed > 0.95
    assert (heads.reward(-fresh, weights) < 0).float().mean() > 0.95
    with pytest.raises(ValueError, match="at least one pair"):
        heads.weigh(few[:0], few[:0])
    with pytest.raises(ValueError, match="no head tells"):
        heads.weigh(few, few)
    with pytest.raises(ValueError, match="components need"):
        DRMHeads.fit(d[:4], d[:4], 5)


def test_drm_dimensions_and_users(drm: DRM) -> None:
    x = pictures(6)
    found = drm(x, "a cat")
    assert (
        tuple(found.dims)
        == drm.dims
        == ("preference", "shared", "+1", "+2", "+3", "+4", "-1", "-2", "-3", "-4")
    )
    torch.testing.assert_close(found.dims["+2"], -found.dims["-2"])
    torch.testing.assert_close(found.score, found.dims["shared"])  # nobody in particular
    before = drm.heads.weights.clone()
    drm.adapt(x[:3], x[3:], ["a cat"] * 3)
    won = drm.score_tensor(x[:3], ["a cat"] * 3).mean() > drm.score_tensor(x[3:], ["a cat"] * 3).mean()
    drm.heads.weights = before
    assert won


def test_nima_mean_and_spread(nima: NIMA) -> None:
    data = golden("nima")
    mean, std = moments(data["dist"])
    torch.testing.assert_close(mean, data["mean"], **CLOSE)
    torch.testing.assert_close(std, data["std"], **CLOSE)
    found = nima(pictures())
    dist = nima.distribution(pictures())
    torch.testing.assert_close(dist.sum(1), torch.ones(3))
    torch.testing.assert_close(found.score, (dist * torch.arange(1.0, 11)).sum(1))
    assert found.std is not None
    assert (found.std > 0).all()
    assert "prompt" not in nima.needs


@pytest.mark.parametrize("name", ["drm", "nima"])
def test_batch_equals_single_and_an_ascent_step_raises_the_score(
    name: str, request: pytest.FixtureRequest
) -> None:
    scorer = request.getfixturevalue(name)
    x = pictures().requires_grad_()
    before = scorer.score_tensor(x, PROMPTS)
    single = torch.cat([scorer.score_tensor(x[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(before, single, rtol=0, atol=1e-4)
    (grad,) = torch.autograd.grad(before.sum(), x)
    step = 0.02 * grad / grad.abs().amax((1, 2, 3), keepdim=True)
    assert (scorer.score_tensor((x + step).detach(), PROMPTS) > before).all()


def test_gradients_of_comparisons_reach_the_pixels(gpm: GPM) -> None:
    a, b = pictures(), pictures(6)[3:]
    a = a.requires_grad_()
    before = gpm.compare_tensor(a, b, PROMPTS)
    (grad,) = torch.autograd.grad(before.sum(), a)
    step = 0.02 * grad / grad.abs().amax((1, 2, 3), keepdim=True)
    assert (gpm.compare_tensor((a + step).detach(), b, PROMPTS) > before).all()


def test_saved_scorers_load_again(gpm: GPM, drm: DRM, nima: NIMA, tmp_path: Path) -> None:
    x = pictures()
    for scorer in (gpm, drm, nima):
        scorer.save(tmp_path / scorer.name)
        again = scorers.load(scorer.name, weights=tmp_path / scorer.name)
        if isinstance(again, GPM):
            found, wanted = again.matrix(x, "a cat"), gpm.matrix(x, "a cat")
        else:
            found, wanted = again.score_tensor(x, PROMPTS), scorer.score_tensor(x, PROMPTS)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="is of the scorer 'nima'; this one is 'gpm'"):
        scorers.load("gpm", weights=tmp_path / "nima")


def test_bad_folders_are_refused(nima: NIMA, tmp_path: Path) -> None:
    nima.save(tmp_path)
    head = load_file(tmp_path / "head.safetensors")
    save_file({**head, "more": torch.ones(1)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"unexpected.*more"):
        scorers.load("nima", weights=tmp_path)
    (tmp_path / "head.json").write_text(json.dumps({"scorer": "nima", "bins": 10, "depth": 2}))
    with pytest.raises(ValueError, match="unknown options depth"):
        scorers.load("nima", weights=tmp_path)
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        scorers.load("nima", weights=tmp_path)
    (tmp_path / "head.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks head\.json"):
        scorers.load("nima", weights=tmp_path)
    with pytest.raises(FileNotFoundError, match="needs weights"):
        scorers.load("nima")
    assert NIMAOptions().bins == 10
