"""Conversion of the VAE decoder's output to pictures, and of pictures to PNG files with their record."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdrt.arrays import check_finite
from sdrt.files import write_atomically
from sdrt.runtime.picture_record import (
    PARAMETERS_KEYWORD,
    RECORD_KEYWORD,
    parameters_text,
    record_json,
)


def to_pictures(sample: npt.NDArray[np.floating[Any]]) -> list[Image.Image]:
    """Convert a sample [n,3,h,w] to n RGB pictures; -1 is black, 1 is full intensity, and values beyond are clipped.

    Rounds half to even, as diffusers does.

    Raises:
        NumericError: The sample holds NaN or Inf.
    """
    check_finite(sample, "vae_decoder")
    levels = np.rint(np.clip(sample.astype(np.float32) * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in levels.transpose(0, 2, 3, 1)]


def is_degenerate(picture: Image.Image) -> bool:
    """Return whether all pixels have the same colour, as the output of a failed decoder often has."""
    pixels = np.asarray(picture)
    return bool((pixels == pixels[0, 0]).all())


def write_png(picture: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture with its record as a PNG, atomically; equal input gives equal bytes.

    Args:
        picture: RGB.
        path: File to write; an existing one is replaced.
        record: The fields of ``PictureRecord``, and any others that JSON can hold.

    Raises:
        ResourceError: The file cannot be written.
    """
    text = PngInfo()
    text.add_text(PARAMETERS_KEYWORD, parameters_text(record, picture.size))
    text.add_itxt(RECORD_KEYWORD, record_json(record))
    stream = BytesIO()
    picture.save(stream, "PNG", pnginfo=text)
    write_atomically(path, stream.getvalue())
