"""Keys of what is cached: digests of everything that a value depends on."""

from __future__ import annotations

import hashlib


def content_key(*parts: str) -> str:
    """sha256 hex digest of texts, each with its length, so that no two lists of parts share a key."""
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()
