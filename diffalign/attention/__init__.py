"""Attention: backends for plain attention, and decoupled cross-attention to text and to users in one pass."""
