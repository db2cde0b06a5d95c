"""Ranges of the values of requests, which manifests and configs share."""

from __future__ import annotations

MAX_LATENT_CHANNELS = 64
MAX_LATENT_SIZE = 512

PROMPT_LIMIT_CHARACTERS = 100_000
MAX_SEED = 2**64 - 1
MAX_PICTURES = 256
MAX_STEPS = 1000
#: Guidance scale if neither the user nor the checkpoint gives one; diffusers' default.
DEFAULT_GUIDANCE_SCALE = 7.5
MAX_GUIDANCE_SCALE = 1000.0
#: At 1 every step would compute the whole UNet, as without DeepCache.
MIN_DEEPCACHE = 2
#: Upper bound for guidance_interval; real sigmas stay far below.
MAX_SIGMA = 1e6
