"""The one Registry class, shared with ``scorers`` (which stands alone and so keeps it)."""

from scorers.registry import Registry, RegistryError

__all__ = ["Registry", "RegistryError"]
