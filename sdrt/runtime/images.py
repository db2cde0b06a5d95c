"""From the VAE decoder's output to pictures, and from pictures to PNG files that say how they were made."""

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
    """RGB pictures of a sample [n,3,h,w], where -1..1 is black to full colour and what is beyond is clipped.

    Rounds half to even, as diffusers does.

    Raises:
        NumericError: The sample holds NaN or Inf.
    """
    check_finite(sample, "vae_decoder")
    levels = np.rint(np.clip(sample.astype(np.float32) * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in levels.transpose(0, 2, 3, 1)]


def is_degenerate(picture: Image.Image) -> bool:
    """Whether every pixel has one colour: black or grey all over is what a failed decoder often gives."""
    pixels = np.asarray(picture)
    return bool((pixels == pixels[0, 0]).all())


def write_png(picture: Image.Image, path: Path, record: Mapping[str, Any]) -> None:
    """Write a picture and how it was made, whole or not at all; equal input gives equal bytes.

    Args:
        picture: RGB.
        path: Where; an existing file is replaced.
        record: What repeats the picture: the fields of ``PictureRecord``, and any others that JSON can hold.

    Raises:
        ResourceError: The place cannot be written.
    """
    text = PngInfo()
    text.add_text(PARAMETERS_KEYWORD, parameters_text(record, picture.size))
    text.add_itxt(RECORD_KEYWORD, record_json(record))
    stream = BytesIO()
    picture.save(stream, "PNG", pnginfo=text)
    write_atomically(path, stream.getvalue())
