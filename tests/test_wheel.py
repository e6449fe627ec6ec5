"""The wheel carries what the demo needs and works from any folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("hatchling")

CHECK = """
import sys
from pathlib import Path
import diffalign, scorers
from diffalign.assets import asset
home = Path(sys.argv[1])
assert Path(diffalign.__file__).is_relative_to(home) and Path(scorers.__file__).is_relative_to(home)
for name in ("training/recipes/shapes-unet-dpo.yaml", "samples/shapes/unet/model_index.json"):
    assert asset(name).is_relative_to(home), asset(name)
from diffalign.cli import app
app(["train", "shapes-unet-dpo", "--dry-run"], standalone_mode=False)
small = ["steps=1", "data.world.images=8", "data.world.per_prompt=2", "output=run"]
app(["train", "shapes-unet-dpo", *small, "evaluate.prompts=2", "evaluate.seeds=2", "evaluate.steps=10"])
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), cwd=ROOT)
    wheel = next(tmp_path.glob("diffalign-*.whl"))
    home, elsewhere = tmp_path / "site packages", tmp_path / "else where"
    elsewhere.mkdir()
    run(*pip, "install", "--no-deps", "-q", "--target", str(home), str(wheel), cwd=elsewhere)
    out = run(sys.executable, "-c", CHECK, str(home), cwd=elsewhere, PYTHONPATH=str(home))
    assert "186,368 parameters trained" in out
    assert (elsewhere / "run" / "report.json").is_file()
    assert (elsewhere / "run" / "gallery.html").is_file()
