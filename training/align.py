"""Align a diffusion model with preferences; the thin twin of ``diffalign train``.

accelerate launch training/align.py training/recipes/shapes-unet-dpo.yaml [key=value ...] [--resume DIR]
"""

from __future__ import annotations

from diffalign.cli import train_main

if __name__ == "__main__":
    train_main()
