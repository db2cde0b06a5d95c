"""Checkpoints: found, checked and described without torch; `sdrt.checkpoint.modules` loads them with torch."""

from sdrt.checkpoint.checkpoint import Checkpoint, tokenizer_json
from sdrt.checkpoint.sources import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint", "tokenizer_json"]
