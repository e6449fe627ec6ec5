"""Preference objectives: pure tensor mathematics, one file per method.

``names()`` lists them, ``build("dpo", beta=2000.0)`` makes one.
"""

from __future__ import annotations

from diffalign.objectives.base import Denoised, Objective, Predictions, build, names, objectives

__all__ = ["Denoised", "Objective", "Predictions", "build", "names", "objectives"]
