"""Both ways of the benchmark agree and are timed, on a tiny model."""

from __future__ import annotations

import pytest
import torch

from diffalign import bench_score as bench
from scorers.clipscore import ClipScore

SIZES = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def tiny(architecture: str, device: str, dtype: torch.dtype) -> ClipScore:
    import open_clip

    torch.manual_seed(0)
    return ClipScore(open_clip.CLIP(**SIZES))


@pytest.mark.slow
def test_lines_say_both_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "random_scorer", tiny)
    options = bench.BenchOptions(images=3, prompts=2, side=48, batch=2, workers=1, rounds=1)
    lines = list(bench.bench_score(options=options))
    assert [line.split()[0] for line in lines] == ["device", "pictures", "ours", "usual", "ratio"]
    assert float(lines[-1].split()[1]) > 0


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="no architecture 'ViT-X'"):
        list(bench.bench_score("ViT-X"))
    with pytest.raises(ValueError, match="no precision 'int8'"):
        list(bench.bench_score(dtype="int8"))
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        bench.BenchOptions(rounds=0)
