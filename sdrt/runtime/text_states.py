"""Prompts to the hidden states that the UNet attends to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdrt.runtime.backends.base import Engine, check_finite
from sdrt.runtime.text import Tokenizer


@dataclass(frozen=True, eq=False)
class EncodedText:
    """Hidden ``states`` [tokens,hidden] of a text, and what of it was ``lost`` because it did not fit ("" if none)."""

    states: npt.NDArray[np.float32]
    lost: str


def encode_texts(encoder: Engine, tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, EncodedText]:
    """Encode each distinct text once, and alone: what else is asked for cannot change it (docs/decisions/0004).

    Raises:
        UsageError: A text cannot be tokenised.
        NumericError: The encoder gave NaN or Inf.
    """
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer.encode(distinct)
    encoded = {}
    for text, row, lost in zip(distinct, tokens.input_ids, tokens.truncated, strict=True):
        states = encoder.run(input_ids=row[np.newaxis])["last_hidden_state"].astype(np.float32, copy=False)
        check_finite(states, "text_encoder")
        encoded[text] = EncodedText(states[0], lost)
    return encoded
