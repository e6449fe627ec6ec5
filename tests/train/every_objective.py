"""Two steps of every registered objective, one run after the other in these processes.

python -m tests.train.every_objective FOLDER OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

from diffalign.objectives import objectives
from diffalign.train.align import align
from tests.train.runs import recipe
from tests.train.test_compositions import OPTIONS, TRAINED, records_of


def main() -> None:
    """See the module."""
    folder, output = map(Path, sys.argv[1:])
    for name in TRAINED:
        content = recipe("sd", folder, output / name) | {
            "objective": {"name": name, **OPTIONS.get(name, {})},
            "precision": "fp64", "steps": 2, "ema": 0.0, "checkpoint_every": 0,
        }  # fmt: skip
        align(content, records=records_of(objectives.get(name).data))


if __name__ == "__main__":
    main()
