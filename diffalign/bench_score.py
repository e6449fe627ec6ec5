"""``diffalign bench score``: pictures a second of a scorer here, beside the usual loop of same weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.label.judges import Judge
from diffalign.label.many import scored_rows
from diffalign.label.pictures import Picture, pictures
from scorers.two_tower import TwoTower

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WORDS = ("red", "blue", "small", "large", "old", "house", "bird", "boat", "tree", "city", "night", "rain")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is measured."""

    images: int = 64
    """Pictures of a round."""
    prompts: int = 8
    """Different prompts; pictures share them, as those of an evaluation do."""
    side: int = 512
    """Pixels of each picture's sides, JPEG."""
    batch: int = 32
    workers: int = 2
    """Threads that decode ahead."""
    rounds: int = 3
    """Both ways take turns, and the median counts, so that other work on the machine hits both."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a number below 1.
        """
        for name in ("images", "prompts", "side", "batch", "workers", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def bench_score(
    architecture: str = "ViT-B-32",
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    options: BenchOptions | None = None,
) -> Iterator[str]:
    """Yield lines: images/s of both ways with decoding and preprocessing, their ratio, share of the GPU.

    Args:
        architecture: open_clip's name of the sizes; weights are random.
        device: where both run.
        dtype: of the towers, float32, bfloat16 or float16.
        options: see BenchOptions.

    Raises:
        ValueError: no such architecture or precision.
    """
    if dtype not in DTYPES:
        raise ValueError(f"no precision {dtype!r}; choose one of {', '.join(DTYPES)}")
    options, scorer = options or BenchOptions(), random_scorer(architecture, device, DTYPES[dtype])
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    yield f"device        {scorer.device}, {dtype}, {threads}"
    yield f"pictures      {options.images} JPEG of {options.side} x {options.side}, {options.prompts} prompts"
    with TemporaryDirectory() as name:
        items = make_pictures(Path(name), options)
        ours, usual = race(scorer, items, options)
    yield f"ours          {options.images / ours:.2f} images/s (decoding and preprocessing included)"
    yield f"usual loop    {options.images / usual:.2f} images/s (one at a time, PIL, no cache)"
    yield f"ratio         {usual / ours:.2f}"
    if scorer.device.type == "cuda":
        yield from gpu_share(scorer, options, options.images / ours)


def random_scorer(architecture: str, device: str | torch.device, dtype: torch.dtype) -> TwoTower:
    """A CLIPScore of random weights in an open_clip architecture.

    Raises:
        ValueError: open_clip knows no such architecture.
    """
    import open_clip

    from scorers.clip_open import cast_open_clip
    from scorers.clipscore import ClipScore

    sizes = open_clip.get_model_config(architecture)
    if sizes is None:
        known = ", ".join(n for n in open_clip.list_models() if n.startswith("ViT"))
        raise ValueError(f"open_clip knows no architecture {architecture!r}; there are {known}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**sizes)
    return ClipScore(cast_open_clip(model, dtype)).to(device)


def make_pictures(folder: Path, options: BenchOptions) -> list[Picture]:
    """Smooth random pictures in files, with a prompt beside each."""
    rng = np.random.default_rng(0)
    texts = [" ".join(["a photo of", *rng.choice(WORDS, 6)]) for _ in range(options.prompts)]
    for i in range(options.images):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture = coarse.resize((options.side, options.side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:05d}.jpg", quality=92)
        (folder / f"{i:05d}.txt").write_text(texts[i % len(texts)])
    return pictures([folder])


def race(scorer: TwoTower, items: Sequence[Picture], options: BenchOptions) -> tuple[float, float]:
    """Median seconds of a round, of our way and of the usual loop.

    Raises:
        ArithmeticError: they do not agree on the scores.
    """
    ours(scorer, items[: options.batch], options)
    usual(scorer, items[:2])
    times: list[tuple[float, float]] = []
    for _ in range(options.rounds):
        scorer.texts = type(scorer.texts)(scorer.texts.limit)  # prompts of an earlier round do not count
        start = time.perf_counter()
        found = ours(scorer, items, options)
        middle = time.perf_counter()
        wanted = usual(scorer, items)
        times.append((middle - start, time.perf_counter() - middle))
        apart = max(abs(a - b) for a, b in zip(found, wanted, strict=True))
        if apart > 2e-2:
            raise ArithmeticError(f"the scores of the two ways are {apart:.3g} apart")
    first, second = zip(*times, strict=True)
    return statistics.median(first), statistics.median(second)


def ours(scorer: TwoTower, items: Sequence[Picture], options: BenchOptions) -> list[float]:
    """Scores as ``diffalign score`` makes them."""
    judge = Judge(name="bench", scorer=scorer, id="", device=scorer.device)
    parts = scored_rows(items, [judge], options.batch, options.workers)
    return [row["bench"] for _, rows in parts for row in rows]


@torch.no_grad()
def usual(scorer: TwoTower, items: Sequence[Picture]) -> list[float]:
    """Scores as published scripts make them: one picture and one prompt at a time."""
    found = []
    for item in items:
        picture = Image.open(item.image.where).convert("RGB")
        image = scorer.image_features(_pil(picture, scorer.preprocess.size, scorer).to(scorer.device))
        text = scorer.token_features(scorer.tokenize([scorer.prefix + (item.prompt or "")]))
        found.append(float((image * text).sum()))
    return found


def _pil(picture: Image.Image, size: int, scorer: TwoTower) -> Tensor:
    """CLIP's transform with Pillow: (1, 3, size, size)."""
    width, height = picture.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    mean, std = (np.array(v, dtype=np.float32) for v in (scorer.preprocess.mean, scorer.preprocess.std))
    return torch.from_numpy((pixels - mean) / std).permute(2, 0, 1)[None]


def gpu_share(scorer: TwoTower, options: BenchOptions, rate: float) -> Iterator[str]:
    """Lines: arithmetic of a picture, and which share of the card's own matrix rate that is."""
    from torch.utils.flop_counter import FlopCounterMode

    size = scorer.preprocess.size
    pixels = torch.zeros(1, 3, size, size, device=scorer.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        scorer.image_features(pixels)
    work = counter.get_total_flops()
    most = matrix_rate(scorer.device, next(scorer.parameters()).dtype)
    yield f"work          {work / 1e9:.1f} GFLOP a picture"
    yield f"matrix rate   {most / 1e12:.1f} TFLOP/s measured, of which {rate * work / most:.0%} are used"


def matrix_rate(device: torch.device, dtype: torch.dtype, n: int = 8192, repeats: int = 20) -> float:
    """Measured FLOP/s of square matrix products."""
    a = torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    torch.cuda.synchronize()
    return 2 * n**3 * repeats / (time.perf_counter() - start)
