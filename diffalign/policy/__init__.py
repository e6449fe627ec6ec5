"""Policies: a diffusers pipeline seen as one trainable model with one meaning, whatever its architecture."""

from __future__ import annotations

from diffalign.policy.base import Policy
from diffalign.policy.load import load_policy

__all__ = ["Policy", "load_policy"]
