"""The shapes world: 64 x 64 pictures whose true preferences are known (see docs/shapes_world.md)."""
