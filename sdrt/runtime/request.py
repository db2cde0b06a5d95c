"""What is asked of the pipeline, checked before anything is loaded or run."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sdrt.errors import UsageError

PROMPT_LIMIT_CHARACTERS = 100_000
MAX_SEED = 2**64 - 1
MAX_PICTURES = 256
MAX_STEPS = 1000
MAX_GUIDANCE_SCALE = 1000.0
#: Seeds that sdrt draws itself stay below this, so that they are short enough to type.
DRAWN_SEEDS = 2**32

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Picture:
    """One picture to make."""

    prompt: str
    negative_prompt: str
    seed: int


@dataclass(frozen=True)
class Request:
    """Pictures to make at the same settings.

    At ``guidance_scale`` 1 and below guidance is off: one UNet row a picture, negative prompts unused.
    """

    pictures: tuple[Picture, ...]
    num_inference_steps: int = 50
    guidance_scale: float = 7.5

    @property
    def guided(self) -> bool:
        """Whether the UNet runs on both halves."""
        return self.guidance_scale > 1


def make_request(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    num_images_per_prompt: int = 1,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
) -> Request:
    """Check the arguments of a call and lay them out picture by picture, in diffusers' order: all of the first prompt.

    Args:
        prompt: One or several.
        negative_prompt: One for all, or one for each prompt.
        seed: Picture i has ``seed`` + i; a list gives one for each picture; None draws one.
        num_images_per_prompt: 1 and up.
        num_inference_steps: 1 to 1000; a scheduler trained on fewer timesteps sets a lower limit.
        guidance_scale: Any finite number up to 1000.

    Raises:
        UsageError: Names the argument and its valid range.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    _check_texts("prompt", prompts)
    count = _whole("num_images_per_prompt", num_images_per_prompt, 1, MAX_PICTURES)
    total = len(prompts) * count
    if not 1 <= total <= MAX_PICTURES:
        raise UsageError(f"{total} pictures are asked for; 1 to {MAX_PICTURES} can be", hint="split the request")
    if (
        isinstance(guidance_scale, bool)
        or not isinstance(guidance_scale, int | float)
        or not math.isfinite(guidance_scale)
    ):
        raise UsageError(f"guidance_scale is {guidance_scale!r}; it must be a finite number", hint="7.5 is the default")
    if abs(guidance_scale) > MAX_GUIDANCE_SCALE:
        raise UsageError(
            f"guidance_scale is {guidance_scale!r}; it must be -{MAX_GUIDANCE_SCALE:.0f} to {MAX_GUIDANCE_SCALE:.0f}",
            hint="7.5 is the default; 1 and below turn guidance off",
        )
    _whole("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
    negatives = _negatives(negative_prompt, len(prompts))
    rows = [(p, n) for p, n in zip(prompts, negatives, strict=True) for _ in range(count)]
    pictures = (Picture(p, n, s) for (p, n), s in zip(rows, _seeds(seed, total), strict=True))
    return Request(tuple(pictures), num_inference_steps, float(guidance_scale))


def _check_texts(name: str, values: list[str]) -> None:
    for value in values:
        if not isinstance(value, str):
            raise UsageError(f"{name} holds a {type(value).__name__}; it must be text", hint=f"give {name} as text")
        check_text(name, value)


def check_text(name: str, text: str) -> None:
    """Refuse what cannot be tokenised, or not in reasonable time.

    Raises:
        UsageError: The text is over 100,000 characters, or holds half of a UTF-16 pair and so is not text.
    """
    if len(text) > PROMPT_LIMIT_CHARACTERS:
        message = f"{name} has {len(text)} characters; the limit is {PROMPT_LIMIT_CHARACTERS}"
        raise UsageError(message, hint="shorten it; the text encoder reads some 75 tokens at most")
    surrogate = _SURROGATE.search(text)
    if surrogate:
        message = f"{name} has a lone surrogate (U+{ord(surrogate[0]):04X}) at position {surrogate.start()}"
        raise UsageError(message, hint=f"give {name} as valid Unicode (UTF-8 on the command line)")


def _negatives(negative_prompt: str | Sequence[str] | None, count: int) -> list[str]:
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives = [negative_prompt or ""] * count
    else:
        negatives = list(negative_prompt)
    _check_texts("negative_prompt", negatives)
    if len(negatives) != count:
        hint = "give one negative prompt for all, or one for each prompt"
        raise UsageError(f"{len(negatives)} negative prompts do not fit {count} prompts", hint=hint)
    return negatives


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed a picture."""
    if seed is None:
        seed = secrets.randbelow(DRAWN_SEEDS)
    if isinstance(seed, int):
        first = _whole("seed", seed, 0, MAX_SEED)
        _whole("seed", first + count - 1, 0, MAX_SEED)
        return list(range(first, first + count))
    seeds = [_whole("seed", value, 0, MAX_SEED) for value in seed]
    if len(seeds) != count:
        raise UsageError(
            f"{len(seeds)} seeds do not fit {count} pictures", hint="give one seed, or one for each picture"
        )
    return seeds


def _whole(name: str, value: int, least: int, most: int) -> int:
    """The value, if it is a whole number in the range."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        shown = repr(value)[:40]
        raise UsageError(f"{name} is {shown}; it must be a whole number, {least} to {most}", hint=f"change {name}")
    return value
