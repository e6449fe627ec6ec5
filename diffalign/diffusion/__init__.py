"""Noise processes, timestep samplers, corruptors and error spaces."""
