"""Latents: unit noise drawn from seeds, and files that hold latents."""

from __future__ import annotations

import math
import tokenize
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
import numpy.typing as npt

from sdrt.errors import ArtefactError, UsageError
from sdrt.files import unreadable, write_atomically
from sdrt.runtime.arguments import whole
from sdrt.runtime.request import MAX_SEED

LATENT_SHAPE = (4, 64, 64)
HEADER_LIMIT_BYTES = 16 << 10

Latents = npt.NDArray[np.float32]


def unit_noise(seeds: Sequence[int], shape: tuple[int, ...] = LATENT_SHAPE) -> Latents:
    """Standard normal noise [n, *shape], one generator a picture: picture i depends on its own seed only.

    The noise is sdrt's own: NumPy's Philox seeded by the number, normal deviates in float64 rounded to float32. It is
    the same on every machine, and not what torch draws from the same seed.

    Raises:
        UsageError: A seed is not a whole number in range.

    Example:
        >>> noise = unit_noise([7, 8])
        >>> noise.shape
        (2, 4, 64, 64)
        >>> bool((noise[1] == unit_noise([8])[0]).all())
        True
    """
    return _normal(seeds, shape, jumps=0)


def posterior_noise(seeds: Sequence[int], shape: tuple[int, ...] = LATENT_SHAPE) -> Latents:
    """Noise like `unit_noise`, independent of it: by it latents are drawn from what the VAE's encoder gives.

    Raises:
        UsageError: A seed is not a whole number in range.
    """
    return _normal(seeds, shape, jumps=1)


def _normal(seeds: Sequence[int], shape: tuple[int, ...], jumps: int) -> Latents:
    """Standard normal numbers [n, *shape]; each jump skips 2^128 draws of a picture's generator."""
    noise = np.empty((len(seeds), *shape), np.float32)
    for row, seed in zip(noise, seeds, strict=True):
        number = whole("seed", seed, 0, MAX_SEED)
        row[...] = np.random.Generator(np.random.Philox(number).jumped(jumps)).standard_normal(shape)
    return noise


def check_kind(latents: object, shape: tuple[int | None, ...]) -> str:
    """Raise UsageError unless latents are a floating-point array of a shape, in which None is any length.

    Returns:
        A hint that says what to give.
    """
    wanted = f"({', '.join('n' if length is None else str(length) for length in shape)})"
    hint = f"give float16, float32 or float64 values of shape {wanted}"
    if not isinstance(latents, np.ndarray) or latents.dtype.kind != "f":
        found = latents.dtype if isinstance(latents, np.ndarray) else type(latents).__name__
        raise UsageError(f"latents are {found}; they must be floating-point numbers in a NumPy array", hint=hint)
    fits = [length in (None, given) for length, given in zip(shape, latents.shape, strict=False)]
    if len(shape) != latents.ndim or not all(fits):
        raise UsageError(f"latents have shape {latents.shape}; it must be {wanted}", hint=hint)
    return hint


def check_latents(latents: npt.NDArray[Any], count: int, shape: tuple[int, ...] = LATENT_SHAPE) -> Latents:
    """Latents from outside as float32 [count, *shape]; one picture's may lack the first axis.

    Raises:
        UsageError: They are no floating-point array, have another shape, or hold NaN or Inf in float32.
    """
    alone = isinstance(latents, np.ndarray) and (count, latents.shape) == (1, shape)
    hint = check_kind(latents, shape if alone else (count, *shape))
    with np.errstate(over="ignore"):
        checked = np.array(latents, np.float32).reshape(count, *shape)
    if not np.isfinite(checked).all():
        raise UsageError("latents hold NaN or Inf, or values beyond float32", hint=hint)
    return checked


def load_latents(path: Path, count: int, shape: tuple[int, ...] = LATENT_SHAPE) -> Latents:
    """Latents of ``count`` pictures from an .npy file, as float32 [count, *shape].

    Raises:
        ArtefactError: The file cannot be read, is no .npy of numbers, or ``check_latents`` refuses what it holds.
    """
    hint = f"give an .npy file of {(count, *shape)} floating-point values, as --save-latents writes"
    limit = count * math.prod(shape) * np.dtype(np.float64).itemsize + HEADER_LIMIT_BYTES
    try:
        if not path.is_file():
            raise ArtefactError(f"{path} is not a file", hint=hint)
        if path.stat().st_size > limit:
            raise ArtefactError(f"{path} is larger than latents of shape {(count, *shape)} can be", hint=hint)
        return check_latents(_parse_npy(path.read_bytes()), count, shape)
    except OSError as error:
        raise unreadable(path, error, ArtefactError, hint=hint) from error
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ArtefactError(f"{path} is not an .npy file of numbers", hint=hint) from error
    except UsageError as error:
        raise ArtefactError(f"{path}: {error.message}", hint=hint) from error


def _parse_npy(data: bytes) -> npt.NDArray[Any]:
    """The array of an .npy file; its header is held against the bytes that are there before anything is allocated."""
    stream = BytesIO(data)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in readers:
        raise ValueError(f"unknown version {version}")
    shape, _, dtype = readers[version](stream)
    if min(shape, default=1) < 0 or math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise ValueError("the header does not fit the file's size")
    stream.seek(0)
    array: npt.NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    return array


def save_latents(path: Path, latents: Latents) -> None:
    """Write latents as a float32 .npy file, whole or not at all.

    Raises:
        ResourceError: The place cannot be written.
    """
    stream = BytesIO()
    npy.write_array(stream, np.asarray(latents, np.float32), allow_pickle=False)
    write_atomically(path, stream.getvalue())
