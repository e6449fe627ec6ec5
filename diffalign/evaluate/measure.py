"""What is measured on an evaluation's pictures, kept by their content so that nothing is measured twice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

import scorers
from diffalign.assets import asset
from diffalign.data.keys import content_key
from diffalign.evaluate.diversity import shrunk_diversity
from diffalign.evaluate.draw import load
from diffalign.evaluate.image_statistics import image_statistics
from diffalign.evaluate.models import share_device
from diffalign.evaluate.prompts import EvalPrompt
from diffalign.evaluate.report import write_atomic
from diffalign.evaluate.request import Request, RequestError, scorer_name
from diffalign.evaluate.results import prompt_id
from diffalign.label.judges import Judge, load_judge
from diffalign.label.many import Share
from scorers.sets import SetScorer

Values = dict[str, list[float]]
"""By name, a number for each seed of a prompt, or one for all of them."""
Progress = Callable[[int], None]
SCORES, INDEX = "scores", "index.json"
STATISTICS, DIVERSITY, OBEDIENCE = "statistics", "diversity", "obedience"


class MeasureError(ValueError):
    """A measure that failed on a picture; the message names both."""


class Measure(Protocol):
    """Something that is measured on the pictures of a prompt."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def id(self) -> str:
        """Digest of what it is, weights included."""

    def __call__(self, x01: Tensor, prompts: Sequence[str]) -> list[Values]:
        """Values of each of P prompts' (P, S, 3, H, W) pictures in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a scorer of single pictures, higher is better."""

    name: str
    judge: Judge

    @property
    def id(self) -> str:
        """See Measure."""
        return self.judge.id

    @torch.no_grad()
    def __call__(self, x01: Tensor, prompts: Sequence[str]) -> list[Values]:
        """See Measure; raises MeasureError for a score that is not finite."""
        scorer, seeds = self.judge.scorer, x01.shape[1]
        texts = [p for p in prompts for _ in range(seeds)]
        found = scorer.score_tensor(x01.flatten(0, 1).to(self.judge.device), texts).cpu().double()
        rows = (found if scorer.higher_better else -found).reshape(len(prompts), seeds).tolist()
        for prompt, row in zip(prompts, rows, strict=True):
            for seed, value in enumerate(row):
                if not math.isfinite(value):
                    raise MeasureError(
                        f"scorer {self.name} gives {value} for seed {seed} of {prompt!r}: look at that "
                        "picture, and at the scorer's weights and precision"
                    )
        return [{"score": row} for row in rows]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Image statistics."""

    name: str = STATISTICS
    id: str = content_key("statistics", "1")

    def __call__(self, x01: Tensor, prompts: Sequence[str]) -> list[Values]:
        """See Measure."""
        found = {k: v.reshape(x01.shape[:2]) for k, v in image_statistics(x01.flatten(0, 1)).items()}
        return [{k: v[i].tolist() for k, v in found.items()} for i in range(len(prompts))]


@dataclass(frozen=True, kw_only=True)
class PixelDiversity:
    """Differences between the seeds of a prompt, on the pictures themselves."""

    name: str = DIVERSITY
    id: str = content_key("diversity", "1")

    def __call__(self, x01: Tensor, prompts: Sequence[str]) -> list[Values]:
        """See Measure."""
        found = shrunk_diversity(x01)
        return [{k: [float(v[i])] for k, v in found.items()} for i in range(len(prompts))]


@dataclass(frozen=True, kw_only=True)
class SetDiversity:
    """A scorer of sets."""

    name: str
    scorer: SetScorer
    id: str
    device: str

    @torch.no_grad()
    def __call__(self, x01: Tensor, prompts: Sequence[str]) -> list[Values]:
        """See Measure."""
        rows = [self.scorer.of_set(self.scorer.features(row.to(self.device))) for row in x01]
        return [{self.name: [float(row)]} for row in rows]


def measures(request: Request, mine: Sequence[Sequence[EvalPrompt]]) -> Iterator[Measure]:
    """All measures of a request, loaded one after another; ``mine`` are the batches of this process."""
    yield from (Statistics(), PixelDiversity())
    device = share_device()
    for spec in (*request.scorers, *request.trained_on):
        yield Scores(name=scorer_name(spec), judge=load_judge(spec, device))
    yield from (_set_diversity(spec, device) for spec in request.sets)
    if of_shapes_world(request.prompts) and _side(request, mine) == 64:
        yield Scores(name=OBEDIENCE, judge=load_judge("shapes-obedience"))


def _side(request: Request, mine: Sequence[Sequence[EvalPrompt]]) -> int:
    """Side of the pictures, told by one that this process drew: others may not have theirs yet."""
    prompt = mine[0][0].prompt
    return int(load([request.picture(request.models[0].name, prompt, 0)]).shape[-1])


def of_shapes_world(prompts: Sequence[EvalPrompt]) -> bool:
    """Whether the oracle of the shapes world understands every prompt."""
    from diffalign.world.grammar import parse

    try:
        for prompt in prompts:
            parse(prompt.prompt)
    except ValueError:
        return False
    return True


def _set_diversity(spec: str, device: str) -> SetDiversity:
    given = scorers.Spec.parse(spec)
    name = given.name
    weights = scorers.find_weights(name, asset(given.weights) if given.weights else None)
    scorer = scorers.load(name, weights, device=device, options=given.options)
    if not isinstance(scorer, SetScorer):
        raise RequestError(f"{name} scores single pictures, so it says nothing of diversity: use --scorers")
    about = json.dumps(scorer.describe(), sort_keys=True)
    return SetDiversity(name=name, scorer=scorer, id=content_key("set", name, about), device=device)


def key_of(prompt: str, digests: Sequence[str]) -> str:
    """Key of the pictures of a prompt, by their files' sha256 in the order of the seeds."""
    return hashlib.sha256(f"{prompt_id(prompt)} {' '.join(digests)}".encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


class Store:
    """Values by key, in a folder of JSON lines per measure; each process adds to a file of its own."""

    def __init__(self, output: Path, id: str) -> None:
        """Read what is there of the measure with this id."""
        self.folder = output / SCORES / id[:16]
        self.found: dict[str, Values] = {}
        for file in sorted(self.folder.glob("*.jsonl")):
            for line in file.read_text(encoding="utf-8").split("\n"):
                if line.endswith("}"):  # a kill may have cut the last one
                    row = json.loads(line)
                    self.found[row["key"]] = row["values"]

    def add(self, rows: Sequence[tuple[str, Values]], share: Share) -> None:
        """Keep values on disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{share.rank:05d}-of-{share.world:05d}.jsonl"
        _end_line(file)
        with open(file, "a", encoding="utf-8") as lines:
            for key, values in rows:
                self.found[key] = values
                lines.write(json.dumps({"key": key, "values": values}) + "\n")


def _end_line(file: Path) -> None:
    """Cut off a line that a kill has left unfinished."""
    if file.exists():
        text = file.read_bytes()
        if text and not text.endswith(b"\n"):
            file.write_bytes(text[: text.rfind(b"\n") + 1])


def measure_all(request: Request, share: Share, progress: Progress = lambda n: None) -> None:
    """Measure what has not been measured of this process's batches; an index says where it was put.

    Raises:
        MeasureError: a score that is not finite; nothing of its batch is kept.
    """
    mine = request.batches[share.rank :: share.world]
    if not mine:  # more processes than batches: the others write the index
        return
    keys, index = _keys(request, mine), dict[str, str]()
    for measure in measures(request, mine):
        index[measure.name] = measure.id
        store = Store(request.output, measure.id)
        for model in request.models:
            for batch in mine:
                if any(keys[model.name, p.prompt] not in store.found for p in batch):
                    store.add(_measured(request, measure, model.name, batch, keys), share)
                progress(len(batch))
    write_atomic(request.output / SCORES / INDEX, json.dumps(index, indent=2) + "\n")


def collect(request: Request) -> dict[str, dict[tuple[str, str], Values]]:
    """Values by measure, and by model and prompt, once all processes have measured."""
    keys = _keys(request, request.batches)
    stores = {name: Store(request.output, id).found for name, id in index_of(request).items()}
    return {name: {place: found[key] for place, key in keys.items()} for name, found in stores.items()}


def index_of(request: Request) -> dict[str, str]:
    """Digest of each measure by its name, once all have been loaded."""
    found: dict[str, str] = json.loads((request.output / SCORES / INDEX).read_text("utf-8"))
    return found


def _keys(request: Request, batches: Sequence[Sequence[EvalPrompt]]) -> dict[tuple[str, str], str]:
    return {
        (m.name, p.prompt): key_of(p.prompt, [file_digest(f) for f in _files(request, m.name, p)])
        for m in request.models
        for batch in batches
        for p in batch
    }


def _files(request: Request, model: str, prompt: EvalPrompt) -> list[Path]:
    return [request.picture(model, prompt.prompt, seed) for seed in range(request.seeds)]


def _measured(
    request: Request,
    measure: Measure,
    model: str,
    batch: Sequence[EvalPrompt],
    keys: dict[tuple[str, str], str],
) -> list[tuple[str, Values]]:
    pictures = load([file for p in batch for file in _files(request, model, p)])
    x01 = pictures.unflatten(0, (len(batch), request.seeds)).float() / 255
    values = measure(x01, [p.prompt for p in batch])
    return [(keys[model, p.prompt], v) for p, v in zip(batch, values, strict=True)]
