"""``python -m diffalign`` is the ``diffalign`` command."""

from __future__ import annotations

from diffalign.cli import main

if __name__ == "__main__":
    main()
