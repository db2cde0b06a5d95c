"""Latents: unit noise drawn from seeds, validation, and .npy files."""

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

from sdrt.arguments import whole
from sdrt.errors import ArtefactError, UsageError
from sdrt.files import unreadable, write_atomically
from sdrt.limits import MAX_LATENT_CHANNELS, MAX_LATENT_SIZE, MAX_SEED

LATENT_SHAPE = (4, 64, 64)
#: Largest channels, height and width of a model's latents.
LIMITS = (MAX_LATENT_CHANNELS, MAX_LATENT_SIZE, MAX_LATENT_SIZE)
HEADER_LIMIT_BYTES = 16 << 10

Latents = npt.NDArray[np.float32]


def unit_noise(seeds: Sequence[int], shape: tuple[int, ...] = LATENT_SHAPE) -> Latents:
    """Draw standard normal noise, float32 [n, *shape]; picture i depends on its own seed only.

    Each picture has its own Philox generator of NumPy; normal deviates are drawn in float64 and rounded to float32. The
    noise is the same on every machine, and differs from torch's for the same seed.

    Args:
        seeds: One for each picture.
        shape: (channels, height, width).

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
    """Draw noise like `unit_noise`, independent of it, to sample the latent distribution of the VAE's encoder.

    Raises:
        UsageError: A seed is not a whole number in range.
    """
    return _normal(seeds, shape, jumps=1)


def _normal(seeds: Sequence[int], shape: tuple[int, ...], jumps: int) -> Latents:
    """Draw standard normal noise, float32 [n, *shape]; each jump skips 2^128 draws of a picture's generator."""
    noise = np.empty((len(seeds), *shape), np.float32)
    for row, seed in zip(noise, seeds, strict=True):
        number = whole("seed", seed, 0, MAX_SEED)
        row[...] = np.random.Generator(np.random.Philox(number).jumped(jumps)).standard_normal(shape)
    return noise


def check_kind(latents: object, shape: tuple[int | None, ...]) -> str:
    """Raise UsageError unless latents are a floating-point array of a shape, in which None is any length.

    Returns:
        The hint of such an error, for further checks.
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


def check_latents(latents: npt.NDArray[Any], count: int, shape: tuple[int, ...] | None = None) -> Latents:
    """Validate latents and return them as float32 [count, *shape]; those of one picture may lack the first axis.

    Args:
        latents: Floating-point array [count, *shape].
        count: Number of pictures.
        shape: (channels, height, width) of the model's latents; None accepts every shape up to `LIMITS`.

    Raises:
        UsageError: The latents are not a floating-point array, have another shape, or hold NaN or Inf in float32.
    """
    hint = f"give float16, float32 or float64 values of shape {_shape_text(count, shape)}"
    if not isinstance(latents, np.ndarray) or latents.dtype.kind != "f":
        found = latents.dtype if isinstance(latents, np.ndarray) else type(latents).__name__
        raise UsageError(f"latents are {found}; they must be floating-point numbers in a NumPy array", hint=hint)
    several = latents.ndim == len(LIMITS) + 1
    each = latents.shape[1:] if several else latents.shape
    if (latents.shape[0] if several else 1) != count or not _fits(each, shape):
        raise UsageError(f"latents have shape {latents.shape}; it must be {_shape_text(count, shape)}", hint=hint)
    with np.errstate(over="ignore"):
        checked = np.array(latents, np.float32).reshape(count, *each)
    if not np.isfinite(checked).all():
        raise UsageError("latents hold NaN or Inf, or values beyond float32", hint=hint)
    return checked


def _fits(found: tuple[int, ...], shape: tuple[int, ...] | None) -> bool:
    if shape is not None:
        return found == shape
    return len(found) == len(LIMITS) and all(0 < length <= most for length, most in zip(found, LIMITS, strict=True))


def _shape_text(count: int, shape: tuple[int, ...] | None) -> str:
    return f"({count}, channels, height, width)" if shape is None else str((count, *shape))


def check_latents_of(path: Path, latents: Latents, shape: tuple[int, int, int]) -> None:
    """Raise ArtefactError unless the latents of a file have the model's shape.

    Args:
        path: The file, as the error names it.
        latents: [n, channels, height, width] read from it.
        shape: (channels, height, width) of the model's latents.

    Raises:
        ArtefactError: The shapes differ; names the file and both shapes.
    """
    if latents.shape[1:] != shape:
        wanted = (len(latents), *shape)
        hint = f"give an .npy file of {wanted} floating-point values, or the checkpoint that these latents are for"
        raise ArtefactError(f"{path}: latents have shape {latents.shape}; this model's is {wanted}", hint=hint)


def load_latents(path: Path, count: int, shape: tuple[int, ...] | None = None) -> Latents:
    """Read latents of ``count`` pictures from an .npy file, as float32 [count, *shape].

    Args:
        path: The file.
        count: Number of pictures.
        shape: (channels, height, width) of the model's latents; None accepts every shape up to `LIMITS`.

    Raises:
        ArtefactError: The file cannot be read, is not an .npy file of numbers, or fails ``check_latents``.
    """
    wanted = _shape_text(count, shape)
    hint = f"give an .npy file of {wanted} floating-point values, as --save-latents writes"
    limit = count * math.prod(shape or LIMITS) * np.dtype(np.float64).itemsize + HEADER_LIMIT_BYTES
    try:
        if not path.is_file():
            raise ArtefactError(f"{path} is not a file", hint=hint)
        if path.stat().st_size > limit:
            raise ArtefactError(f"{path} is larger than latents of shape {wanted} can be", hint=hint)
        return check_latents(_parse_npy(path.read_bytes()), count, shape)
    except OSError as error:
        raise unreadable(path, error, ArtefactError, hint=hint) from error
    except (ValueError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ArtefactError(f"{path} is not an .npy file of numbers", hint=hint) from error
    except UsageError as error:
        raise ArtefactError(f"{path}: {error.message}", hint=hint) from error


def _parse_npy(data: bytes) -> npt.NDArray[Any]:
    """Parse an .npy file; its header is checked against the file's size before anything is allocated."""
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
    """Write latents as a float32 .npy file, atomically.

    Raises:
        ResourceError: The file cannot be written.
    """
    stream = BytesIO()
    npy.write_array(stream, np.asarray(latents, np.float32), allow_pickle=False)
    write_atomically(path, stream.getvalue())
