"""``python -m diffalign.train RECIPE [key=value ...]``: what every launcher runs."""

from __future__ import annotations

from diffalign.cli import train_main

if __name__ == "__main__":
    train_main()
