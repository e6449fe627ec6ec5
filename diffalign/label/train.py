"""``training/train_scorer.py``: from preferences in any format to a trained scorer with its accuracy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffalign.config import load
from diffalign.data import read
from diffalign.label.ballots import ballots
from scorers.fresh import to_train
from scorers.train import TrainOptions, fit, preset
from scorers.train_state import check_output

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)


def train_on(
    data: Path,
    scorer: str,
    weights: Path,
    out: Path,
    changes: Sequence[str] = (),
    *,
    format: str = "auto",
    dims: Sequence[str] = (),
    precision: str = "no",
) -> dict[str, Any]:
    """Train a scorer on preferences, with its published defaults where nothing else is said.

    Args:
        data: file, folder or glob pattern, see ``diffalign.data.read``.
        scorer: name of a scorer with weights.
        weights: to start from, see ``scorers.fresh.to_train``.
        out: new folder of the scorer, in the layout that its loader reads; a stopped run goes on there.
        changes: ``key=value`` of TrainOptions.
        format: of the data.
        dims: names of judgements besides the main one, for MPS; see ``ballots``.
        precision: of accelerate: no, bf16 or fp16.

    Returns:
        The content of ``accuracy.json`` in ``out``.

    Raises:
        FileExistsError: ``out`` holds a trained scorer, or files of something else.
        DataError: the data cannot be read, or say nothing.
        ValueError: wrong options, or a loss that the scorer cannot learn by.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    check_output(out)
    options = options_for(scorer, changes)
    items = ballots(read(data, format), ratings=options.loss == "emd", dims=dims)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # last norms that no feature sees
    accelerator: Accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[unused])
    logging.getLogger("scorers").setLevel(logging.INFO if accelerator.is_main_process else logging.WARNING)
    loaded = to_train(scorer, weights, items, device=accelerator.device, seed=options.seed)
    return fit(loaded, items, out, options, accelerator=accelerator)


def options_for(scorer: str, changes: Sequence[str]) -> TrainOptions:
    """Published defaults of a scorer with changes.

    Given steps replace published epochs; the warm-up is an eighth of the steps at most unless it is given.

    Raises:
        ValueError: an unknown option, or a value out of range.
    """
    base = asdict(_preset(scorer))
    named = {change.partition("=")[0] for change in changes}
    options = load(TrainOptions, base | {"betas": list(base["betas"])}, changes)
    if "steps" in named and "epochs" not in named:
        options = replace(options, epochs=None)
    return options if "warmup" in named else replace(options, warmup=min(options.warmup, options.steps // 8))


def _preset(scorer: str) -> TrainOptions:
    try:
        return preset(scorer)
    except ValueError:
        logger.warning("no training of %r is published; PickScore's defaults with Bradley-Terry", scorer)
        return TrainOptions(loss="bradley-terry")
