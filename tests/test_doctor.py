from __future__ import annotations

import io
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from diffalign import doctor
from diffalign.doctor import Findings, problems, render

GOOD = Findings(
    python="3.12.1",
    packages={name: lowest for name, (lowest, _) in doctor.REQUIRED.items()} | dict.fromkeys(doctor.OPTIONAL),
    attention={"sdpa_math": None, "fa2": "the package flash-attn is not installed"},
)


def with_version(name: str, version: str | None) -> Findings:
    return replace(GOOD, packages={**GOOD.packages, name: version})


def only(findings: Findings) -> doctor.Problem:
    (problem,) = problems(findings)
    return problem


def test_nothing_is_wrong_with_a_good_installation():
    assert problems(GOOD) == []


def test_cpu_torch_beside_a_torchvision_of_another_build():
    broken = replace(
        with_version("torch", "2.13.0+cpu"),
        broken={"torchvision": "operator torchvision::nms does not exist"},
    )
    problem = only(broken)
    assert "2.13.0+cpu (a CPU-only build)" in problem.what
    assert "torchvision::nms" in problem.what
    assert "pip install torch torchvision" in problem.remedy
    assert "http" not in problem.remedy


def test_cpu_torch_that_works_is_no_problem():
    assert problems(with_version("torch", "2.13.0+cpu")) == []


@pytest.mark.parametrize(
    ("name", "version", "what"),
    [
        ("torch", "2.9.1+cu128", "torch is 2.9.1+cu128; 2.11 is the oldest"),
        ("transformers", "4.57.0", "transformers is 4.57.0; 5.23 is the oldest"),
        ("diffusers", "0.43.0", "tested below 0.43"),
        ("peft", None, "peft is not installed"),
    ],
)
def test_wrong_versions(name, version, what):
    problem = only(with_version(name, version))
    assert what in problem.what
    assert f"'{name}>=" in problem.remedy


@pytest.mark.parametrize("version", ["2.100.0", "2.11", "3.0.0.dev2+git1"])
def test_versions_are_numbers_not_text(version):
    assert problems(with_version("torch", version)) == []


def test_old_python():
    assert "3.10.4" in only(replace(GOOD, python="3.10.4")).what


def test_gpu_that_torch_does_not_see():
    assert "sees no GPU" in only(replace(GOOD, nvidia_driver=True)).what
    assert problems(replace(GOOD, nvidia_driver=True, devices=("cuda:0 GPU, 80 GiB", "cpu"))) == []


def test_torch_that_cannot_be_imported_is_told_once():
    findings = replace(GOOD, broken={"torch": "libcudart.so is missing", "torchvision": "no torch"})
    assert "libcudart.so" in only(findings).what


def shown(findings: Findings) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render(findings))
    return console.file.getvalue()


def test_render_shows_versions_and_remedies():
    assert "No problems found." in shown(GOOD)
    text = shown(with_version("peft", None))
    assert "peft is not installed" in text
    assert "pip install -U 'peft>=0.21,<1'" in text


def test_limits_agree_with_pyproject():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    asked = dict(re.fullmatch(r"([\w.-]+)>=(.*)", line).groups() for line in project["dependencies"])
    for name, (lowest, too_new) in doctor.REQUIRED.items():
        assert asked[name] == lowest + (f",<{too_new}" if too_new else "")


def test_why_an_attention_backend_is_not_used_is_shown():
    text = shown(GOOD)
    assert re.search(r"attention sdpa_math\W+yes", text)
    assert "no: the package flash-attn is not installed" in text


def test_this_installation_is_looked_at():
    findings = doctor.inspect()
    assert findings.packages["torch"]
    assert findings.attention["sdpa_math"] is None
    assert "installed" in (findings.attention["fa4"] or "")
    assert "fused for users" in findings.attention
    assert findings.devices[-1] == "cpu"


XFORMERS = """
try:
    try:
        raise OSError("libcudart.so.12: cannot open shared object file")
    except OSError as error:
        raise ValueError("xFormers can't load C++/CUDA extensions. Built for:\\n  torch 2.10") from error
except ValueError as error:
    import logging
    logging.getLogger("xformers").warning("needs another build", exc_info=error)
"""


def fake_package(folder: Path, ops: str) -> None:
    """An installed xformers whose module ``ops`` does this."""
    (folder / "xformers").mkdir()
    (folder / "xformers" / "__init__.py").touch()
    (folder / "xformers" / "ops.py").write_text(ops)
    (folder / "xformers-0.0.35.dist-info").mkdir()
    (folder / "xformers-0.0.35.dist-info" / "METADATA").write_text("Name: xformers\nVersion: 0.0.35\n")


@pytest.mark.parametrize(
    ("ops", "reason"),
    [
        (XFORMERS, r"ValueError: xFormers can't load .*\(OSError: libcudart.so.12: cannot open"),
        ("raise ImportError('needs flash-attn 2.8.4')", "^ImportError: needs flash-attn 2.8.4$"),
        ("import os; os.abort()", "its import ends with code -6"),
    ],
    ids=["logged", "raised", "crash"],
)
def test_an_attention_package_that_does_not_load_is_told_as_broken(ops, reason, tmp_path, monkeypatch):
    fake_package(tmp_path, ops)
    monkeypatch.syspath_prepend(tmp_path)
    broken = doctor.broken_backends()
    assert re.search(reason, broken["xformers"])
    assert broken["xformers"] in (doctor._attention("cpu", broken)["xformers"] or "")
    findings = replace(with_version("xformers", "0.0.35"), broken=broken)
    assert "xformers is installed and broken" in only(findings).what
    assert "pip uninstall xformers" in only(findings).remedy
    assert "0.0.35 broken" in shown(findings)


def test_an_attention_package_that_loads_is_not_broken(tmp_path, monkeypatch):
    fake_package(tmp_path, "import warnings; warnings.warn('this function will change')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "xformers" not in doctor.broken_backends()
