"""The request to the pipeline, validated before anything is loaded or run."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sdrt.arguments import as_real, as_whole, items, shown, whole
from sdrt.errors import UsageError
from sdrt.limits import (
    DEFAULT_GUIDANCE_SCALE,
    MAX_GUIDANCE_SCALE,
    MAX_PICTURES,
    MAX_SEED,
    MAX_SIGMA,
    MAX_STEPS,
    MIN_DEEPCACHE,
    PROMPT_LIMIT_CHARACTERS,
)

#: Upper bound of seeds that sdrt draws itself, so that they are short enough to type.
DRAWN_SEEDS = 2**32

#: How LMS starts on an initial picture. "diffusers" weights the first derivatives as if there were a history, as
#: diffusers' scheduler does; "fresh" lets the order rise from 1, as at the start from noise (docs/decisions/0060).
LmsStart = Literal["diffusers", "fresh"]
LMS_STARTS: tuple[LmsStart, ...] = ("diffusers", "fresh")
#: Default strength for an initial picture; diffusers' default.
DEFAULT_STRENGTH = 0.8

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

    At ``guidance_scale`` 1 and below guidance is off: one UNet row for each picture, negative prompts unused. With
    ``guidance_left_open`` the caller gave no scale, and `with_defaults` uses the checkpoint's recommendation.

    ``start_step`` is the first step that runs on an initial picture, counted from 0; None starts from noise alone.
    ``lms_start`` selects the coefficients of the first steps after it: see `LmsStart`.

    With a ``guidance_interval`` (low, high) only steps with low < sigma <= high are guided; the others run the
    prompt's half alone, which halves their work (Kynkäänniemi et al. 2024, arXiv:2404.07724, section 3).

    With ``deepcache`` N only every N-th step computes the whole UNet, beginning with the first that runs; see
    `sdrt.runtime.deepcache`.
    """

    pictures: tuple[Picture, ...]
    num_inference_steps: int = 50
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE
    start_step: int | None = None
    lms_start: LmsStart = "diffusers"
    guidance_interval: tuple[float, float] | None = None
    deepcache: int | None = None
    guidance_left_open: bool = False

    def with_defaults(self, recommended: float) -> Request:
        """Return the request with the recommended guidance scale if the caller gave none."""
        return replace(self, guidance_scale=recommended, guidance_left_open=False) if self.guidance_left_open else self

    def batch_key(self) -> Request:
        """Return the request without its pictures; pictures of requests with equal keys may be denoised together."""
        return replace(self, pictures=())

    @property
    def guided(self) -> bool:
        """True if guidance is on, and so the UNet runs on both halves."""
        return self.guidance_scale > 1

    @property
    def strength(self) -> float | None:
        """Share of the steps that run on an initial picture; None without one."""
        return None if self.start_step is None else 1 - self.start_step / self.num_inference_steps


def make_request(
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str] | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    num_images_per_prompt: int = 1,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    strength: float | None = None,
    start_step: int | None = None,
    lms_start: LmsStart = "diffusers",
    guidance_interval: Sequence[float] | None = None,
    deepcache: int | None = None,
) -> Request:
    """Validate the arguments of a call, and build the request, in diffusers' order: all pictures of a prompt together.

    Args:
        prompt: One prompt or several.
        negative_prompt: One for all prompts, or one for each.
        seed: Picture i has ``seed`` + i; a list gives one for each picture; None draws one at random.
        num_images_per_prompt: At least 1.
        num_inference_steps: 1 to 1000; a scheduler trained on fewer timesteps sets a lower limit.
        guidance_scale: -1000 to 1000; None uses the checkpoint's recommendation.
        strength: Share of the steps that run on an initial picture, above 0 and up to 1.
        start_step: First step that runs on an initial picture, counted from 0; in place of ``strength``.
        lms_start: One of `LMS_STARTS`, for an initial picture.
        guidance_interval: Two sigmas (low, high): steps with low < sigma <= high are guided.
        deepcache: 2 to 1000: the whole UNet is computed in every N-th step only; None computes it in every step.

    Raises:
        UsageError: Names the argument and its valid range.
    """
    prompts = _texts("prompt", prompt)
    count = whole("num_images_per_prompt", num_images_per_prompt, 1, MAX_PICTURES)
    total = len(prompts) * count
    if not 1 <= total <= MAX_PICTURES:
        raise UsageError(
            f"the request has {total} pictures; it must have 1 to {MAX_PICTURES}", hint="split the request"
        )
    scale = _guidance_scale(guidance_scale)
    steps = whole("num_inference_steps", num_inference_steps, 1, MAX_STEPS)
    negatives = _negatives(negative_prompt, len(prompts))
    rows = [(p, n) for p, n in zip(prompts, negatives, strict=True) for _ in range(count)]
    pictures = (Picture(p, n, s) for (p, n), s in zip(rows, _seeds(seed, total), strict=True))
    start = _start(strength, start_step, steps)
    if not isinstance(lms_start, str) or lms_start not in LMS_STARTS:
        raise UsageError(f"lms_start is {shown(lms_start)}", hint=f"choose from {', '.join(LMS_STARTS)}")
    return Request(
        tuple(pictures),
        steps,
        scale,
        start,
        lms_start,
        _interval(guidance_interval),
        None if deepcache is None else whole("deepcache", deepcache, MIN_DEEPCACHE, MAX_STEPS),
        guidance_left_open=guidance_scale is None,
    )


def _guidance_scale(scale: float | None) -> float:
    """Validate a guidance scale; return the default for None."""
    if scale is None:
        return DEFAULT_GUIDANCE_SCALE
    hint = f"{DEFAULT_GUIDANCE_SCALE} suits most checkpoints"
    number = as_real(scale)
    if number is None or not math.isfinite(number):
        raise UsageError(f"guidance_scale is {shown(scale)}; it must be a finite number", hint=hint)
    if abs(number) > MAX_GUIDANCE_SCALE:
        raise UsageError(
            f"guidance_scale is {shown(scale)}; it must be -{MAX_GUIDANCE_SCALE:.0f} to {MAX_GUIDANCE_SCALE:.0f}",
            hint=f"{hint}; 1 and below turn guidance off",
        )
    return number


def _interval(sigmas: Sequence[float] | None) -> tuple[float, float] | None:
    if sigmas is None:
        return None
    values = items("guidance_interval", sigmas, "two sigmas, 0 <= low < high")
    low, high = [as_real(value) for value in values] if len(values) == 2 else (None, None)
    if low is None or high is None or not 0 <= low < high <= MAX_SIGMA:
        raise UsageError(
            f"guidance_interval is {', '.join(map(shown, values[:4]))[:60]}; it must be two sigmas, 0 <= low < high",
            hint="noise levels of SD v1 fall from 14.6 to 0.03; 0.3 to 5 is where guidance does most",
        )
    return low, high


def _start(strength: float | None, start_step: int | None, steps: int) -> int | None:
    """Return the first step that runs on an initial picture, counted from 0; None without one."""
    if strength is not None and start_step is not None:
        raise UsageError("strength and start_step exclude each other", hint="give one of the two")
    if start_step is not None:
        return whole("start_step", start_step, 0, steps - 1)
    if strength is None:
        return None
    share = as_real(strength)
    if share is None or not 0 < share <= 1:
        raise UsageError(f"strength is {shown(strength)}; it must be above 0 and up to 1", hint="0.8 is the default")
    # Rounded as in get_timesteps of diffusers' StableDiffusionImg2ImgPipeline.
    left = min(int(steps * share), steps)
    if left < 1:
        message = f"strength {share!r} leaves none of {steps} steps to run"
        raise UsageError(message, hint=f"use more steps, or a strength of at least {1 / steps:.2g}")
    return steps - left


def _texts(name: str, value: str | Sequence[str]) -> list[str]:
    """Return the texts of one text or several, each validated."""
    texts = [value] if isinstance(value, str) else items(name, value, "text, or a list of texts")
    for text in texts:
        if not isinstance(text, str):
            raise UsageError(f"{name} holds a {type(text).__name__}; it must be text", hint=f"give {name} as text")
        check_text(name, text)
    # Converts NumPy's strings to Python's.
    return [str(text) for text in texts]


def check_text(name: str, text: str) -> None:
    """Raise UsageError unless a text can be tokenised in reasonable time.

    Raises:
        UsageError: The text is over 100,000 characters, or holds a lone UTF-16 surrogate.
    """
    if len(text) > PROMPT_LIMIT_CHARACTERS:
        message = f"{name} has {len(text)} characters; the limit is {PROMPT_LIMIT_CHARACTERS}"
        raise UsageError(message, hint="shorten it; the text encoder reads some 75 tokens at most")
    surrogate = _SURROGATE.search(text)
    if surrogate:
        message = f"{name} has a lone surrogate (U+{ord(surrogate[0]):04X}) at position {surrogate.start()}"
        raise UsageError(message, hint=f"give {name} as valid Unicode (UTF-8 on the command line)")


def _negatives(negative_prompt: str | Sequence[str] | None, count: int) -> list[str]:
    negatives = _texts("negative_prompt", "" if negative_prompt is None else negative_prompt)
    if negative_prompt is None or isinstance(negative_prompt, str):
        negatives *= count
    if len(negatives) != count:
        hint = "give one negative prompt for all, or one for each prompt"
        raise UsageError(f"{len(negatives)} negative prompts do not fit {count} prompts", hint=hint)
    return negatives


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Return a seed for each picture."""
    if seed is None:
        seed = secrets.randbelow(DRAWN_SEEDS)
    if as_whole(seed) is not None:
        first = whole("seed", seed, 0, MAX_SEED)
        whole("seed", first + count - 1, 0, MAX_SEED)
        return list(range(first, first + count))
    given = items("seed", seed, f"a whole number, 0 to {MAX_SEED}, or a list of them")
    seeds = [whole("seed", value, 0, MAX_SEED) for value in given]
    if len(seeds) != count:
        raise UsageError(
            f"{len(seeds)} seeds do not fit {count} pictures", hint="give one seed, or one for each picture"
        )
    return seeds
