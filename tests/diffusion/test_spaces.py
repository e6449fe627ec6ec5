"""Spaces: derived goldens with toy networks, closed forms, frozen features, flags, memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffalign.diffusion.corrupt import Corrupted, GaussianNoise
from diffalign.diffusion.decoder_features import DecoderFeatures, feature_distance
from diffalign.diffusion.dit_features import DiTFeatures
from diffalign.diffusion.pixel import Pixel, PixelError
from diffalign.diffusion.process import Process
from diffalign.diffusion.spaces import BoundSpace, native_error, spaces
from diffalign.diffusion.timesteps import Discrete, Uniform
from diffalign.diffusion.unet_features import UNetFeatureError, UNetFeatures
from diffalign.objectives import Denoised, build
from diffalign.policy import Policy, load_policy
from tests.objectives.test_goldens import golden
from tests.tiny import tiny_folder

PRECISIONS = [(torch.float64, 1e-6), (torch.float32, 2e-4)]
SPACES = {"sd": ["native", "pixel", "decoder_features", "unet_features"]}
SPACES |= {"sd-v": SPACES["sd"], "sdxl": SPACES["sd"]}
SPACES["sd3"] = ["native", "pixel", "decoder_features", "dit_features"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def policy_of(family: str, folder: Path, adapter: dict[str, Any] | None = None) -> Policy:
    policy = load_policy(tiny_folder(family, folder), {"rank": 2} if adapter is None else adapter or None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # the LoRA does something
        for parameter in policy.trainable().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


class Batch:
    """Two noised pairs of a policy, with conditioning."""

    def __init__(self, policy: Policy, dtype: torch.dtype = torch.float32, share: float = 0.3) -> None:
        generator = torch.Generator().manual_seed(3)
        x0 = torch.randn(4, 8, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
        self.cond = policy.collate_prompts(policy.encode_prompts(["a red circle"] * 4))
        self.sizes = torch.tensor([[64, 64, 0, 0, 64, 64]] * 4)
        self.noisy = GaussianNoise()(x0, [7, 7, 9, 9], policy.process, Uniform(low=share, high=share + 0.1))
        self.pred = (self.noisy.target + 0.3 * torch.randn(x0.shape, generator=generator)).to(dtype)

    def error(self, space: BoundSpace, pred: Tensor) -> Tensor:
        return space.error(pred, self.noisy, self.cond, self.sizes)


# ---------------------------------------------------------------------- goldens


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_ncp_dpo(dtype: torch.dtype, rtol: float, normalise: bool) -> None:
    """With normalise the error is the golden one over the squared coefficient, so both are pinned."""
    d, exact = golden("ncp_dpo_toy_encoder", dtype), golden("ncp_dpo_toy_encoder")
    # the step is made of alphas, which the file's float32 alphas_cumprod gives back to five digits only
    process = Process(prediction="eps", alphas_cumprod=exact["alphas"].cumprod(0))

    def encode(y: Tensor, t: Tensor, cond: Any, sizes: Any) -> tuple[Tensor, ...]:
        assert t.tolist() == (d["timesteps"] - 1).tolist()
        inner = F.silu(F.conv2d(y, d["w0"], d["b0"], padding=1))
        return (F.conv2d(inner, d["w1"], d["b1"], stride=2, padding=1),)

    space = UNetFeatureError(process, encode, normalise)
    space.zeta = lambda noisy: d["z"]  # type: ignore[method-assign]
    t = d["timesteps"].long()
    noisy = Corrupted(x_t=d["x_t"], t=t, target=d["target"], units=(1, 2, 1, 2))
    coefficient = (1 - exact["alphas"]) / (exact["alphas"] * (1 - exact["alphas_cumprod"])).sqrt()
    scale = (coefficient[t].square() if normalise else torch.ones(4)).to(dtype)
    pred = d["model_pred"].clone().requires_grad_(True)
    error = space.error(pred, noisy, {}) * scale
    with torch.no_grad():
        ref_error = space.error(d["ref_pred"], noisy, {}) * scale
    torch.testing.assert_close(error.double(), exact["policy_err"], rtol=10 * rtol, atol=0)
    torch.testing.assert_close(ref_error.double(), exact["ref_err"], rtol=10 * rtol, atol=0)
    loss = dpo(error, ref_error, float(d["beta"]))
    torch.testing.assert_close(loss.double(), exact["loss"], rtol=rtol, atol=0)
    gradient = torch.autograd.grad(loss, pred)[0].double()
    largest = exact["grad_model_pred"].abs().max()
    assert (gradient - exact["grad_model_pred"]).abs().max() <= 10 * rtol * largest


def dpo(error: Tensor, ref_error: Tensor | None, beta: float) -> Tensor:
    batch = Denoised(
        error=error, ref_error=ref_error, group=torch.tensor([0, 1, 0, 1]), role=torch.tensor([1, 1, -1, -1]),
        t=torch.zeros(4),
    )  # fmt: skip
    return build("dpo", beta=beta).loss(batch)[0].mean()


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS)
def test_pixel_simpo(dtype: torch.dtype, rtol: float) -> None:
    """loss = l(-beta (e_w - e_l)) + mu l(-beta (p_w - p_l)): two terms of a reference-free pair loss."""
    d, exact = golden("pixel_simpo_toy_decoder", dtype), golden("pixel_simpo_toy_decoder")
    process = Process(prediction="eps", alphas_cumprod=d["alphas_cumprod"])
    t = d["timesteps"].long()
    noisy = Corrupted(x_t=process.add_noise(d["latents"], d["target"], t), t=t, target=d["target"])

    def decode(z: Tensor) -> Tensor:
        return torch.tanh(F.conv_transpose2d(z, d["w"], d["b"], stride=2, padding=1))

    pred = d["model_pred"].clone().requires_grad_(True)
    pixels = PixelError(process, decode, chunk=3).error(pred, noisy, {})
    beta = 2 * float(d["beta"])  # canonical
    latent = dpo(native_error(pred, d["target"]), None, beta)
    loss = latent + float(d["mu"]) * dpo(pixels, None, beta)
    inside = -float(d["beta"]) * (pixels[:2] - pixels[2:])
    torch.testing.assert_close(inside.double(), exact["pixel_inside"], rtol=10 * rtol, atol=10 * rtol)
    torch.testing.assert_close(loss.double(), exact["loss"], rtol=rtol, atol=0)
    gradient = torch.autograd.grad(loss, pred)[0].double()
    largest = exact["grad_model_pred"].abs().max()
    assert (gradient - exact["grad_model_pred"]).abs().max() <= 10 * rtol * largest


# ---------------------------------------------------------------------- on real networks


def quick_and_slow() -> list[Any]:
    every = [(family, name) for family, names in SPACES.items() for name in names]
    quick = [("sd", "unet_features"), ("sd", "decoder_features"), ("sd3", "dit_features")]
    return [pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow) for pair in every]


@pytest.mark.parametrize(("family", "name"), quick_and_slow())
def test_frozen_and_zero_at_the_truth(family: str, name: str, folder: Path) -> None:
    policy = policy_of(family, folder)
    flags = {n: p.requires_grad for n, p in policy.denoiser.named_parameters()}
    space, batch = spaces.get(name)().bind(policy), Batch(policy)
    assert batch.error(space, batch.noisy.target).abs().max() == 0
    pred = batch.pred.clone().requires_grad_(True)
    error = batch.error(space, pred)
    assert error.shape == (4,)
    assert (error > 0).all()
    gradient = torch.autograd.grad(error.sum(), pred)[0]
    assert gradient.abs().amax((1, 2, 3)).min() > 0
    assert {n: p.requires_grad for n, p in policy.denoiser.named_parameters()} == flags
    for parameter in policy.trainable().values():
        parameter.data += 1  # what is trained does not change what errors mean
    again = Batch(policy)
    torch.testing.assert_close(again.error(space, again.pred), error.detach(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param("sd", "unet_features", marks=pytest.mark.slow), pytest.param("sd3", "dit_features")],
)
def test_gradient_checkpointing_does_not_bring_the_lora_back(family: str, name: str, folder: Path) -> None:
    """What is recomputed in the backward pass would be so with the LoRA on."""
    policy = policy_of(family, folder)
    policy.denoiser.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            policy.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
        space, batch = spaces.get(name)().bind(policy), Batch(policy)
        pred = batch.pred.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(batch.error(space, pred).sum(), pred)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert any(vars(m).get("gradient_checkpointing") for m in policy.denoiser.modules())


@pytest.mark.parametrize(
    ("family", "name"),
    [pytest.param("sd", "unet_features"), pytest.param("sd3", "dit_features", marks=pytest.mark.slow)],
)
def test_full_training_and_bf16_look_through_a_copy(family: str, name: str, folder: Path) -> None:
    whole = policy_of(family, folder, {})
    whole.set_reference()
    space, batch = spaces.get(name)().bind(whole), Batch(whole)
    before = batch.error(space, batch.pred)
    for parameter in whole.trainable().values():
        parameter.data += 0.1
    again = Batch(whole)
    torch.testing.assert_close(again.error(space, again.pred), before, rtol=0, atol=0)

    half = policy_of(family, folder)
    exact = Batch(half).error(spaces.get(name)().bind(half), Batch(half).pred)
    half.to(dtype=torch.bfloat16)
    copied = spaces.get(name)().bind(half)
    assert all(p.dtype == torch.float32 for p in copied.encode.network.parameters())
    batch = Batch(half)
    with torch.autocast("cpu", torch.bfloat16):  # features ignore it
        rounded = batch.error(copied, batch.pred)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0)  # the weights were rounded to bf16


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    unet, dit = policy_of("sd", folder), policy_of("sd3", folder)
    with pytest.raises(ValueError, match="use dit_features"):
        UNetFeatures().bind(dit)
    with pytest.raises(ValueError, match="use unet_features"):
        DiTFeatures().bind(unet)
    with pytest.raises(ValueError, match="has 2 blocks only"):
        DiTFeatures(blocks=3).bind(dit)
    unet.pipeline.vae.half()
    for space in (Pixel(), DecoderFeatures()):
        with pytest.raises(ValueError, match="fp16, in which it overflows"):
            space.bind(unet)
    for wrong in ({"chunk": 0}, {"min_snr": 0.0}, {"outlier": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            DecoderFeatures(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="chunk is 0"):
        Pixel(chunk=0)
    with pytest.raises(ValueError, match=r"step 1\.0"):
        DiTFeatures(step=1.0)


def test_a_denoiser_cut_up_over_processes_is_refused(folder: Path, tmp_path: Path) -> None:
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    policy = policy_of("sd", folder)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        conv = policy.denoiser.conv_in
        conv.weight = nn.Parameter(distribute_tensor(conv.weight.data, mesh), requires_grad=False)
        with pytest.raises(ValueError, match="cut up over processes"):
            UNetFeatures().bind(policy)
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------------- single spaces


class Counting:
    """An encoder that counts its calls and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, y: Tensor, t: Tensor, cond: Any, sizes: Any) -> tuple[Tensor, ...]:
        self.seen.append(y)
        return (y,)


def vp_batch(prediction: str = "eps", steps: tuple[int, ...] = (400,)) -> tuple[Process, Corrupted]:
    alphas = golden("ncp_dpo_toy_encoder")["alphas"].cumprod(0)
    process = Process(prediction=prediction, alphas_cumprod=alphas)  # type: ignore[arg-type]
    x0 = torch.randn(4, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return process, GaussianNoise()(x0, [1, 1, 2, 2], process, Discrete(steps=steps))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_normalised_ncp_of_the_identity_is_the_eps_error(prediction: str) -> None:
    """With features = latents P is coefficient^2 times the eps error, whatever the model predicts."""
    process, noisy = vp_batch(prediction)
    pred = noisy.target + 0.1 * torch.randn_like(noisy.target)
    error = UNetFeatureError(process, Counting(), normalise=True).error(pred, noisy, {})
    eps = process.weight(noisy.t, "eps_equivalent") * native_error(pred, noisy.target)
    torch.testing.assert_close(error, eps, rtol=1e-6, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "flow"])
def test_pixel_space_decodes_the_implied_noise(prediction: str) -> None:
    """With pixels = latents p is s^2 times the eps error, and the truth is x_t itself."""
    process, noisy = vp_batch("eps" if prediction == "flow" else prediction)
    if prediction == "flow":
        process = Process(prediction="flow")
        noisy = GaussianNoise()(noisy.x_t, [1, 1, 2, 2], process, Uniform(low=0.3))
    pred = noisy.target + 0.1 * torch.randn_like(noisy.target)
    space = PixelError(process, lambda z: z, chunk=4)
    eps = process.weight(noisy.t, "eps_equivalent") * native_error(pred, noisy.target)
    s = process.coefficients(noisy.t)[1]
    torch.testing.assert_close(space.error(pred, noisy, {}), s.square() * eps, rtol=1e-6, atol=0)
    torch.testing.assert_close(space.truth(noisy, {}, None)[0], noisy.x_t, rtol=0, atol=0)


def test_truth_is_made_once_per_batch_and_freed_with_it() -> None:
    process, noisy = vp_batch()
    encode, cond = Counting(), {"text": torch.zeros(4)}
    space = UNetFeatureError(process, encode, normalise=True)
    space.error(noisy.target + 1, noisy, cond)
    space.error(noisy.target - 1, noisy, cond)
    assert len(encode.seen) == 3, "policy, reference, and one truth"
    space.error(noisy.target + 1, noisy, dict(cond))
    assert len(encode.seen) == 5, "another caption has another truth"
    other = vp_batch()[1]
    kept = weakref.ref(noisy)
    del noisy
    gc.collect()
    assert kept() is None
    assert space._seen is None
    assert space.error(other.target, other, cond).abs().max() == 0


def test_ncp_noise_is_one_per_unit_and_t_zero_is_left_out() -> None:
    process, noisy = vp_batch()
    encode = Counting()
    space = UNetFeatureError(process, encode, normalise=True)
    zeta = space.zeta(noisy)
    torch.testing.assert_close(zeta[0], zeta[1], rtol=0, atol=0)
    assert not torch.equal(zeta[0], zeta[2])
    process, first = vp_batch(steps=(0,))
    pred = (first.target + 1).requires_grad_(True)
    error = space.error(pred, first, {})
    assert error.tolist() == [0.0] * 4
    assert torch.autograd.grad(error.sum(), pred)[0].abs().max() == 0


@pytest.mark.slow
def test_lpl_counts_where_the_picture_is_seen(folder: Path) -> None:
    policy = policy_of("sd", folder)
    space = DecoderFeatures(chunk=3).bind(policy)
    late = Batch(policy, share=0.8)
    pred = late.pred.clone().requires_grad_(True)
    error = late.error(space, pred)
    assert error.tolist() == [0.0] * 4, "SNR below 1/9"
    assert torch.autograd.grad(error.sum(), pred)[0].abs().max() == 0
    early = Batch(policy, share=0.3)
    torch.testing.assert_close(
        early.error(space, early.pred), early.error(DecoderFeatures().bind(policy), early.pred)
    )


def test_feature_distance_by_hand() -> None:
    true = torch.tensor([0.0, 2.0, 0.0, 2.0], dtype=torch.float64).view(1, 1, 2, 2)  # mean 1, s.d. 1
    seen = true + torch.tensor([1.0, 0.0, 0.0, 2.0], dtype=torch.float64).view(1, 1, 2, 2)
    assert feature_distance(seen, true, 5.0).item() == pytest.approx(5 / 4, rel=1e-5)
    huge = torch.zeros(1, 1, 10, 10, dtype=torch.float64)
    huge[0, 0, 0, 0] = 1000.0  # ten standard deviations from the mean: an outlier
    assert feature_distance(2 * huge, huge, 5.0).item() == 0
    assert feature_distance(2 * huge, huge, 11.0).item() > 0


def test_flow_step_of_dit_features() -> None:
    """With features = latents P / d^2 is the velocity error; the step never goes below time 0."""
    from diffalign.diffusion.dit_features import DiTFeatureError

    process = Process(prediction="flow")
    x0 = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    noisy = GaussianNoise()(x0, [1, 2], process, Discrete(steps=(5, 900)))
    encode = Counting()
    pred = noisy.target + 0.1
    error = DiTFeatureError(process, encode, DiTFeatures(step=0.02)).error(pred, noisy, {})
    torch.testing.assert_close(error, torch.full((2,), 0.01, dtype=torch.float64), rtol=1e-6, atol=0)

    def louder(y: Tensor, t: Tensor, cond: Any, sizes: Any) -> tuple[Tensor, ...]:
        return (50 * y, y)

    scaled = DiTFeatureError(process, louder, DiTFeatures(step=0.02)).error(pred, noisy, {})
    torch.testing.assert_close(scaled, error)
    raw = DiTFeatureError(process, louder, DiTFeatures(step=0.02, normalise=False)).error(pred, noisy, {})
    step = noisy.t.double().clamp(max=0.02)
    torch.testing.assert_close(raw, 0.01 * step.square() * (2500 + 1) / 2, rtol=1e-6, atol=0)
