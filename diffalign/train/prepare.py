"""From a recipe's data block to a loader: read or make the preferences, fit them to the objective, encode,
cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from diffalign.assets import asset
from diffalign.data.cache import CacheOptions, build_cache
from diffalign.data.derived import read_labelled
from diffalign.data.loader import Loader, LoaderOptions
from diffalign.data.readers import read
from diffalign.data.records import DataError, Record
from diffalign.data.select import check_needs, select
from diffalign.data.transform import Transform
from diffalign.objectives import Objective, objectives
from diffalign.policy import Policy
from diffalign.train.config import TrainConfig
from diffalign.train.finish import warn_of_overlap
from diffalign.train.progress import Screen


def given_records(
    config: TrainConfig, records: Sequence[Record] | None, say: Callable[[str], None]
) -> list[Record] | None:
    """Preferences that are there before any model is, fitted to the objective.

    Args:
        config: recipe.
        records: preferences in memory; None reads those at data.path.
        say: shows a line.

    Returns:
        None where the shapes world is to make them.

    Raises:
        FileNotFoundError: nothing at data.path.
        DataError: the data do not follow their format, or lack what the objective needs.
    """
    if records is None and config.data.path is None:
        return None
    return fitted(config, _read_path(config) if records is None else list(records), say)


def fitted(config: TrainConfig, records: Sequence[Record], say: Callable[[str], None]) -> list[Record]:
    """Records as they are trained on: chosen and labelled by ``data.select``, then fitted to the objective.

    Raises:
        DataError: they lack what data.select or an objective asks for.
    """
    if config.data.select is not None:
        records, notes = select(records, config.data.select)
        for line in notes:
            say(f"selected    {line}")
    if config.data.reverse:
        records = [reverse(r) for r in records]
    records = select_for(config.objective, records)
    check_needs(records, frozenset[str]().union(*(t.objective.needs for t in config.all_terms)))
    return records


def reverse(record: Record) -> Record:
    """The opinion of somebody who prefers the opposite; an undecided record stays as it is."""
    if record.kind == "ranking":
        return replace(record, values=tuple(-v for v in record.values))
    soft = None if record.soft is None else (record.soft[1], record.soft[0])
    return replace(record, values=tuple(1 - v for v in record.values), soft=soft)


def read_records(config: TrainConfig, policy: Policy, screen: Screen) -> list[Record]:
    """Read the recipe's preferences, or make them in the shapes world.

    Raises:
        FileNotFoundError: nothing at data.path.
        DataError: the data do not follow their format.
    """
    if config.data.path is not None:
        return _read_path(config)
    from diffalign.evaluate.generate import Sampling
    from diffalign.world.votes import world_records

    if config.data.world is None:
        raise DataError("data.path is missing: name a file or folder of preferences, or a data.world block")
    with screen.task("base pictures", config.data.world.images) as advance:
        sampling = Sampling(steps=config.evaluate.steps, guidance=config.evaluate.guidance)
        records = world_records(policy, config.data.world, Path(config.data.cache), advance, sampling)
    return records[: config.data.max_pairs]


def select_for(objective: Objective, records: Sequence[Record]) -> list[Record]:
    """Bring records to what the objective declares.

    Winners are taken from pairs, rankings and likes alike; everything else must be there as it is.

    Raises:
        DataError: the data lack what the objective needs; says what it has and which objectives would fit.
    """
    if not records:
        raise DataError("the data set is empty: there is no record to train on")
    kinds = sorted({r.kind for r in records})
    wanted = {"pairs": "pair", "labels": "labels", "ranking": "ranking"}.get(objective.data)
    if wanted is None:
        winners = [w for r in records for w in _winners(r)]
        if not winners:
            raise DataError("the objective trains on winners, and the data hold ties and dislikes only")
        return winners
    if kinds != [wanted]:
        raise DataError(
            f"objective {type(objective).__name__} needs {objective.data}, the data hold {', '.join(kinds)};"
            f" take objective {' or '.join(_fitting(kinds))}, or other data"
        )
    return list(records)


def _fitting(kinds: Sequence[str]) -> list[str]:
    """Names of the objectives that train on records of these kinds."""
    takes = {"pair": "pairs", "labels": "labels", "ranking": "ranking"}
    data = {"winners", takes[kinds[0]]} if len(kinds) == 1 else {"winners"}
    return [name for name in objectives.names() if objectives.get(name).data in data]


def _winners(record: Record) -> list[Record]:
    """One liked-image record for each best image of a comparison that has a winner."""
    best = max(record.values)
    if record.kind != "labels" and min(record.values) == best:
        return []
    chosen = [i for i, v in enumerate(record.values) if v == best and (record.kind != "labels" or v == 1)]
    return [record.only([i], "labels", (1.0,)) for i in chosen]


def build_loader(
    config: TrainConfig, policy: Policy, records: Sequence[Record], accelerator: Accelerator, screen: Screen
) -> Loader:
    """Encode what the cache lacks, and make this process's loader.

    Raises:
        DataError: unreadable images beyond the allowed share, only ties, too few units for the processes, or
            records that lack what data.select asks.
    """
    data = config.data
    with screen.encoding() as progress:
        cached = build_cache(
            records,
            policy,
            Path(data.cache),
            transform=Transform(
                resolution=data.resolution, random_crop=data.random_crop, flip=data.flip, seed=config.seed
            ),
            options=CacheOptions(max_bad_share=data.max_bad_share),
            progress=progress,
        )
    screen.say(f"data        {cached.report.summary()}")
    for where, reason in cached.report.bad[:20]:
        screen.say(f"skipped     {where}: {reason}")
    if accelerator.is_main_process and config.evaluate.prompts:
        warn_of_overlap(config, cached.captions)
    options = LoaderOptions(
        batch=config.batch // config.accumulate,
        seed=config.seed,
        ties=data.ties,
        prompt_dropout=data.prompt_dropout,
        liked_share=data.liked_share,
        curriculum=data.curriculum,
        other_captions=any("kl_error" in t.objective.needs for t in config.all_terms),
    )
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.people is not None and "direction" in config.people.encoder.needs:
        from diffalign.train.directions import DirectedLoader, Directions

        directions = Directions(config.people, records)
        return DirectedLoader(cached, policy.collate_prompts, options, directions, rank=rank, world=world)
    return Loader(cached, policy.collate_prompts, options, rank=rank, world=world)


def _read_path(config: TrainConfig) -> list[Record]:
    path = _found(config.data.path or "")
    if config.data.labels is not None:
        labels = _found(config.data.labels)
        return read_labelled(path, labels, config.data.format, max_pairs=config.data.max_pairs)
    return read(path, config.data.format, max_pairs=config.data.max_pairs)


def _found(path: str) -> Path:
    try:
        return asset(path)
    except FileNotFoundError:
        return Path(path)  # a glob pattern, or the reader's own error
