"""Makers of test checkpoints: real classes, real vocabulary, seeded random weights."""

from tests.models.tiny import odd_checkpoints, tiny_checkpoint

__all__ = ["odd_checkpoints", "tiny_checkpoint"]
