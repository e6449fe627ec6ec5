"""Alignment to single people: who they are, how a model learns of them, and whether it helps.

attached = diffalign.personalize.attach(pipeline, "outputs/run/export/users")
attached.use("anna")
pipeline("a red circle")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffalign.personalize.pipeline import Attached, attach
    from diffalign.personalize.users import Users

__all__ = ["Attached", "Users", "attach"]

_HOMES = {
    "Attached": "diffalign.personalize.pipeline",
    "Users": "diffalign.personalize.users",
    "attach": "diffalign.personalize.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import public names when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffalign.personalize' has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
