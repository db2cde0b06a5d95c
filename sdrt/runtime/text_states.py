"""Encoding of prompts to the hidden states that the UNet attends to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdrt.arrays import check_finite
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.denoise import Conditioning
from sdrt.runtime.request import Picture, Request
from sdrt.runtime.text import Tokenizer


@dataclass(frozen=True, eq=False)
class EncodedText:
    """Hidden ``states`` [tokens,hidden] of a text, and its truncated part, ``lost`` ("" if none)."""

    states: npt.NDArray[np.float32]
    lost: str


def encode_texts(encoder: Engine, tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, EncodedText]:
    """Encode each distinct text once, in a batch of its own, so that other texts cannot change its bits.

    See docs/decisions/0004.

    Args:
        encoder: Engine of the text encoder.
        tokenizer: The tokenizer.
        texts: Prompts and negative prompts.

    Returns:
        The encoded texts, by text.

    Raises:
        UsageError: A text cannot be tokenised.
        NumericError: The encoder's output holds NaN or Inf.
    """
    distinct = list(dict.fromkeys(texts))
    tokens = tokenizer.encode(distinct)
    encoded = {}
    for text, row, lost in zip(distinct, tokens.input_ids, tokens.truncated, strict=True):
        states = encoder.run(input_ids=row[np.newaxis])["last_hidden_state"].astype(np.float32, copy=False)
        check_finite(states, "text_encoder")
        encoded[text] = EncodedText(states[0], lost)
    return encoded


def texts_of(request: Request) -> list[str]:
    """Return the prompts of a request and, with guidance, its negative prompts."""
    negatives = [picture.negative_prompt for picture in request.pictures] if request.guided else []
    return [picture.prompt for picture in request.pictures] + negatives


def conditioning_of(group: Sequence[Picture], request: Request, texts: Mapping[str, EncodedText]) -> Conditioning:
    """Build the conditioning of a group of pictures.

    Args:
        group: Pictures that are denoised together.
        request: The request they belong to.
        texts: Their encoded prompts and, with guidance, negative prompts.
    """
    negatives = [texts[picture.negative_prompt].states for picture in group] if request.guided else []
    return Conditioning(
        np.stack([texts[picture.prompt].states for picture in group]),
        np.stack(negatives) if negatives else None,
        request.guidance_scale,
        request.guidance_interval,
    )
