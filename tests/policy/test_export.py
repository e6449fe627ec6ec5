"""Exported weights: reloaded by plain diffusers in a fresh process at true strength; kohya; merging."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffalign.policy import Policy, load_policy
from diffalign.policy.export import LORA_FILE, export_policy, kohya_state, merge
from tests.tiny import tiny_folder

FRESH = """
import sys, torch
from diffusers import DiffusionPipeline
model, lora, output, part = sys.argv[1:]
pipeline = DiffusionPipeline.from_pretrained(model)
if part == "lora":
    pipeline.load_lora_weights(lora)
elif part != "none":
    module = getattr(pipeline, part)
    setattr(pipeline, part, type(module).from_pretrained(lora, subfolder=part))
assert not any(name.startswith("diffalign") for name in sys.modules)
pipeline.set_progress_bar_config(disable=True)
generators = [torch.Generator().manual_seed(s) for s in (3, 4)]
extra = {"max_sequence_length": 32} if hasattr(pipeline, "transformer") else {}
images = pipeline(["a red circle"] * 2, height=64, width=64, num_inference_steps=3, guidance_scale=4.0,
                  generator=generators, output_type="pt", **extra).images
torch.save(images.float(), output)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def trained(model: str, adapter: dict[str, object] | None) -> Policy:
    policy = load_policy(model, adapter)
    if adapter is None:
        policy.set_reference("start")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def elsewhere(model: str, lora: Path | str, part: str, output: Path) -> torch.Tensor:
    """Pictures of a process that knows nothing of diffalign."""
    done = subprocess.run(
        [sys.executable, "-c", FRESH, model, str(lora), str(output), part],
        cwd=output.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(output, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "alpha"), [("sd", 16), ("sd3", 2), ("sdxl", 8)])
def test_lora_reloads_at_true_strength_in_plain_diffusers(
    family: str, alpha: int, folder: Path, tmp_path: Path
) -> None:
    model = tiny_folder(family, folder)
    policy = trained(model, {"rank": 4, "alpha": alpha})
    own = policy.generate(["a red circle"] * 2, [3, 4], steps=3)
    with policy.base():
        base = policy.generate(["a red circle"] * 2, [3, 4], steps=3)
    export_policy(policy, tmp_path / "export")
    reloaded = elsewhere(model, tmp_path / "export", "lora", tmp_path / "images.pt")
    effect = (own - base).abs().max()
    assert effect > 0.02
    assert (reloaded - own).abs().max() < 1e-3 * effect + 1e-5


@pytest.mark.slow
def test_full_weights_and_merged_pipelines_reload(folder: Path, tmp_path: Path) -> None:
    model = tiny_folder("sd", folder)
    full = trained(model, None)
    export_policy(full, tmp_path / "full")
    own = full.generate(["a red circle"] * 2, [3, 4], steps=3)
    again = elsewhere(model, tmp_path / "full", "unet", tmp_path / "a.pt")
    torch.testing.assert_close(again, own, rtol=0, atol=1e-4)
    lora = trained(model, {"rank": 4, "alpha": 8})
    own = lora.generate(["a red circle"] * 2, [3, 4], steps=3)
    merge(lora, tmp_path / "merged")
    again = elsewhere(str(tmp_path / "merged"), "", "none", tmp_path / "b.pt")
    torch.testing.assert_close(again, own, rtol=0, atol=1e-3)
    with pytest.raises(FileExistsError, match="never overwrites"):
        merge(trained(model, {"rank": 4}), tmp_path / "merged")
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge(full, tmp_path / "other")


@pytest.mark.slow
def test_metadata_holds_rank_alpha_and_targets(folder: Path, tmp_path: Path) -> None:
    policy = trained(tiny_folder("sd", folder), {"rank": 4, "alpha": 16})
    export_policy(policy, tmp_path / "export", card="# card")
    with safe_open(tmp_path / "export" / LORA_FILE, "pt") as file:
        found = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (found["unet.r"], found["unet.lora_alpha"]) == (4, 16)
    assert set(found["unet.target_modules"]) == {"to_q", "to_k", "to_v", "to_out.0"}
    keys = load_file(tmp_path / "export" / LORA_FILE)
    assert all(k.startswith("unet.") and ".default." not in k for k in keys)
    assert (tmp_path / "export" / "README.md").read_text() == "# card"


def test_kohya_has_the_true_alpha(folder: Path, tmp_path: Path) -> None:
    policy = trained(tiny_folder("sd", folder), {"rank": 4, "alpha": 16})
    state = kohya_state(policy)
    modules = {k.split(".")[0] for k in state}
    assert all(m.startswith("lora_unet_") for m in modules)
    for module in modules:
        assert float(state[f"{module}.alpha"]) == 16
        assert state[f"{module}.lora_down.weight"].shape[0] == state[f"{module}.lora_up.weight"].shape[1] == 4
    export_policy(policy, tmp_path / "export", kohya=True)
    pipeline = load_policy(tiny_folder("sd", folder)).pipeline
    pipeline.load_lora_weights(tmp_path / "export", weight_name="kohya.safetensors")
    torch.manual_seed(0)
    x, t, text = torch.randn(1, 8, 8, 8), torch.tensor([500]), torch.randn(1, 16, 32)
    with torch.no_grad():
        one = pipeline.unet(x, t, text).sample
        other = policy.denoiser(x, t, text).sample
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="kohya"):
        kohya_state(trained(tiny_folder("sd3", folder), {"rank": 4}))


def test_a_merge_that_fails_can_be_done_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = trained(tiny_folder("sd", folder), {"rank": 4, "alpha": 8})
    before = policy.generate(["a red circle"], [3], steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(type(policy.pipeline.vae), "save_pretrained", None)
        with pytest.raises(TypeError):
            merge(policy, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    merge(policy, tmp_path / "merged")
    assert torch.equal(policy.generate(["a red circle"], [3], steps=2), before)
    merged = load_policy(str(tmp_path / "merged")).generate(["a red circle"], [3], steps=2)
    torch.testing.assert_close(merged, before, rtol=0, atol=1e-3)
