"""Backends of attention against the formula in fp64, what they refuse, and how the fastest is remembered."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from diffalign.attention import attend as attends
from diffalign.attention import probe
from diffalign.attention.attend import Attend, Problem
from diffalign.attention.backends import attention, backend, names, priority, why_not

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16
ONES = [name for name in names() if name != "auto"]


def tensors(dtype: torch.dtype = torch.float64, keys: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 5, 3, 64), (2, keys, 3, 64), (2, keys, 3, 64)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def formula(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    s = torch.einsum("bnhd,blhd->bhnl", q, k) / q.shape[-1] ** 0.5
    s = s if mask is None else s.masked_fill(~mask, float("-inf"))
    return torch.einsum("bhnl,blhd->bnhd", s.softmax(-1), v)


def with_gradients(function, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """Output and three gradients in fp64, from inputs rounded to bf16."""
    x = [t.to(DTYPE).to(device, dtype).requires_grad_() for t in tensors()]
    out = function(*x)
    out.square().sum().backward()
    return [t.detach().cpu().double() for t in (out, *(t.grad for t in x))]


@pytest.mark.parametrize("name", [*ONES, "auto", "diffusers:native"])
def test_every_backend_is_right_forward_and_backward(name):
    reason = why_not(name, DEVICE)
    if reason:
        pytest.skip(reason)
    truth = with_gradients(formula, torch.float64, torch.device("cpu"))
    found = with_gradients(Attend(name, DEVICE), DTYPE, DEVICE)
    for a, b in zip(found, truth, strict=True):
        assert (a - b).abs().max() < 0.02 * b.abs().max()


@pytest.mark.parametrize("name", ["sdpa", "sdpa_math"])
def test_masks(name):
    q, k, v = tensors()
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)[:, None, None]
    torch.testing.assert_close(attention(q, k, v, mask, name=name), formula(q, k, v, mask))
    torch.testing.assert_close(Attend()(q, k, v, mask), formula(q, k, v, mask))


@pytest.mark.skipif(DEVICE.type == "cuda", reason="about machines without a GPU")
@pytest.mark.parametrize("name", ["sdpa_cudnn", "sdpa_efficient", "flex"])
def test_what_needs_a_gpu_says_so(name):
    assert "needs a GPU" in (why_not(name, DEVICE) or "")
    with pytest.raises(RuntimeError, match=rf"{name} cannot be used: it needs a GPU.*; use auto"):
        Attend(name, DEVICE)
    with pytest.raises(RuntimeError, match=f"{name} cannot be used"):
        attention(*tensors(), name=name)


@pytest.mark.parametrize(
    ("name", "wheel"), [("fa2", "flash-attn"), ("fa3", "flash-attn-3"), ("xformers", "xformers")]
)
def test_a_missing_package_is_named(name, wheel, monkeypatch):
    from diffalign.attention import backends

    def missing(_):
        raise backends.metadata.PackageNotFoundError

    monkeypatch.setattr(backends.metadata, "version", missing)
    assert why_not(name, DEVICE) == f"the package {wheel} is not installed"


@pytest.mark.parametrize("name", ["diffusers:sage", "diffusers:_flash_3"])
def test_a_backend_without_backward_is_refused_where_gradients_are_on(name):
    q, k, v = tensors()
    with pytest.raises(RuntimeError, match=f"{name} has no backward pass.*no_grad"):
        attention(q.requires_grad_(), k, v, name=name)
    with (
        torch.no_grad(),
        pytest.raises(RuntimeError, match="cannot be used"),
    ):  # it goes on to the next reason
        attention(q, k, v, name=name)


def test_code_that_is_fetched_at_run_time_is_refused():
    assert why_not("diffusers:flash_hub", DEVICE) == "it fetches code at run time"
    assert "diffusers has no such backend" in (why_not("diffusers:nothing", DEVICE) or "")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"'quick' is none of auto, sdpa, .*diffusers:<name>"):
        Attend("quick")


def test_a_mask_where_none_is_taken():
    assert not backend("flex").masks
    with pytest.raises(ValueError, match="flex takes no mask"):
        attention(*tensors(), torch.ones(1, 1, 1, 7, dtype=torch.bool), name="flex")


def test_shapes_that_a_backend_refuses_are_named():
    q, k, v = tensors(torch.float64)
    with pytest.raises(RuntimeError, match=r"sdpa_math cannot run q \(2, 5, 3, 64\).*use auto"):
        attention(q, k[..., :32], v, name="sdpa_math")


def test_cudnn_comes_first_on_hopper_alone(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert priority(cuda)[0].name == "CUDNN_ATTENTION"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert priority(cuda)[0].name == "FLASH_ATTENTION"
    assert priority(torch.device("cpu"))[0].name == "FLASH_ATTENTION"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    return torch.device("cuda")


def test_the_fastest_is_measured_once(gpu, monkeypatch):
    asked = []

    def time(name, call, device):
        asked.append(name)
        return {"a": None, "b": 3.0, "c": 2.0}[name]

    monkeypatch.setattr(probe, "milliseconds", time)
    calls = dict.fromkeys("abc", lambda: None)
    assert [probe.fastest("a problem", calls, "default", gpu) for _ in range(2)] == ["c", "c"]
    assert asked == ["a", "b", "c"]
    assert json.loads(probe.cache_file().read_text()) == {f"A GPU; torch {torch.__version__}; a problem": "c"}
    probe.fastest("another problem", calls, "default", gpu)
    assert asked == ["a", "b", "c"] * 2


def refused():
    raise RuntimeError("this shape is refused")


def test_the_default_where_every_call_is_refused(gpu):
    assert probe.fastest("a problem", {"a": refused}, "default", gpu) == "default"


def test_missing_memory_is_no_refusal(gpu):
    def short():
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        probe.fastest("a problem", {"a": short}, "default", gpu)


def test_the_calls_that_are_measured_run():
    problem = Problem(q=(1, 4, 2, 8), keys=3, dtype=torch.float32, device=torch.device("cpu"), backward=True)
    problem.call("sdpa")()
    assert problem.describe().startswith(
        "batch 1, 4 queries, 3 keys, 2 heads of 8, torch.float32, forward and"
    )


def test_a_damaged_file_of_choices_is_named(gpu):
    file = probe.cache_file()
    file.parent.mkdir()
    file.write_text("{")
    with pytest.raises(ValueError, match=r"attention.json is damaged .* delete it"):
        probe.fastest("a problem", {}, "default", gpu)


def test_a_folder_that_cannot_be_written_is_a_line_in_the_log(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        probe.remember(tmp_path / "file" / "attention.json", "key", "sdpa")
    assert "not remembered" in caplog.text


def test_lines_for_people():
    said = dict(attends.lines(torch.device("cpu"), ["auto", "sdpa", "sdpa_cudnn"]))
    assert said == {
        "auto": "usable",
        "sdpa": "usable",
        "sdpa_cudnn": "it needs a GPU, and the device is cpu",
    }


@pytest.mark.slow
def test_auto_and_named_kernels_compile_without_a_graph_break():
    x = [t.requires_grad_() for t in tensors(torch.float32)]
    for name in ("auto", "sdpa_math"):
        compiled = torch.compile(Attend(name), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*x), formula(*x))


def test_packages_are_loaded_when_they_are_called_and_explain_a_failure(monkeypatch):
    from diffalign.attention import backends

    class FlashAttention:
        @staticmethod
        def flash_attn_func(q, k, v):
            return formula(q, k, v), "log-sum-exp"

    q, k, v = tensors()
    monkeypatch.setattr(backends, "_loaded", lambda module: FlashAttention)
    torch.testing.assert_close(backend("fa3").function(q, k, v, None), formula(q, k, v))
    monkeypatch.undo()

    def broken(module):
        raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(backends, "import_module", broken)
    with pytest.raises(
        RuntimeError, match=r"xformers.ops is installed but does not load \(libcudart.*use auto"
    ):
        backend("xformers").function(q, k, v, None)
