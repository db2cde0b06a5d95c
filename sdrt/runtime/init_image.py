"""An initial picture: opened safely, resized to the model's size, and encoded to latents.

The first frame is used, turned by its EXIF orientation, with transparency over white and 16-bit grey scaled to 8 bits;
any other mode is converted to RGB without its colour profile. Then the largest square around the centre is resized by
Lanczos. Other metadata, well-formed or not, is ignored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrt.arrays import check_finite
from sdrt.errors import ArtefactError, UsageError
from sdrt.files import unreadable
from sdrt.runtime.backends.base import Engine
from sdrt.runtime.picture_bytes import without_metadata
from sdrt.runtime.rgb import UndrawableError, pillow_errors, to_rgb

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

#: Formats that Pillow reads without running another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
#: 256 MiB as RGBA. Pillow's own limit is 179 million pixels.
MAX_PIXELS = 1 << 26
LIMIT_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class InitImage:
    """A picture at the model's size: RGB ``pixels`` uint8 [size,size,3]."""

    pixels: Pixels

    @classmethod
    def of(cls, picture: Image.Image, size: int) -> InitImage:
        """Crop a picture to the largest square around its centre, and resize that.

        Args:
            picture: A picture of any size and mode.
            size: Width and height of the model's pictures.

        Raises:
            UsageError: It is not a PIL.Image.Image, or cannot be converted to RGB: see `sdrt.runtime.rgb`.
        """
        if not isinstance(picture, Image.Image):
            hint = "open it first: PIL.Image.open(path)"
            raise UsageError(f"image is a {type(picture).__name__}; it must be a PIL.Image.Image", hint=hint)
        try:
            upright = to_rgb(picture)
        except UndrawableError as error:
            hint = error.hint or "give a picture whose file is complete and not closed yet"
            raise UsageError(f"image {error}", hint=hint) from error
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        # Crop first: resizing a box of a picture samples pixels beyond its edges.
        square = upright.crop((left, top, left + side, top + side))
        return cls(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels, which the record of a picture started from this one holds."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def sample(self) -> Floats:
        """Return the input of the VAE's encoder: float32 [1,3,size,size] from -1 (black) to 1."""
        scaled = self.pixels.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[np.newaxis])


def open_picture(path: Path) -> Image.Image:
    """Open a picture file, and decode it as an upright RGB picture.

    Raises:
        ArtefactError: It cannot be read, is not a picture of `FORMATS`, is damaged, or is larger than `MAX_PIXELS`.
    """
    hint = f"give a picture as {', '.join(FORMATS)} of up to {MAX_PIXELS >> 20} Mi pixels"
    try:
        if not path.is_file():
            raise ArtefactError(f"{path} is not a file", hint=hint)
        if path.stat().st_size > LIMIT_BYTES:
            raise ArtefactError(f"{path} is larger than {LIMIT_BYTES >> 20} MiB", hint=hint)
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, ArtefactError, hint=hint) from error
    except ValueError as error:
        raise ArtefactError(f"cannot read {path}: not a usable path", hint=hint) from error
    try:
        with pillow_errors(), Image.open(BytesIO(without_metadata(data)), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UndrawableError(f"has {picture.width}x{picture.height} pixels: too many")
            return to_rgb(picture)
    except UndrawableError as error:
        raise ArtefactError(f"{path} {error}", hint=error.hint or hint) from error


def encode_picture(encoder: Engine, init: InitImage) -> Floats:
    """Run the VAE's encoder on a picture, and return mean and log-variance, float32 [1,2c,h,w].

    Raises:
        NumericError: The encoder's output holds NaN or Inf.
    """
    (spec,) = encoder.spec.inputs
    # An engine whose smallest batch is above 1 gets the picture repeated.
    rows = encoder.spec.batch.min if encoder.spec.batch else 1
    sample = np.repeat(init.sample().astype(spec.dtype, copy=False), rows, axis=0)
    parameters = encoder.run(sample=sample)["latent_parameters"][:1].astype(np.float32, copy=False)
    check_finite(parameters, "vae_encoder")
    return parameters


def draw_latents(parameters: Floats, noise: Floats) -> Floats:
    """Draw latents from the normal distribution that the VAE's encoder returns for a picture.

    Args:
        parameters: [1,2c,h,w], mean and log-variance; the latter is clipped to -30..20, as in diffusers'
            DiagonalGaussianDistribution.
        noise: [n,c,h,w] standard normal.

    Returns:
        [n,c,h,w], before the scaling factor.
    """
    mean, log_variance = np.split(parameters, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
    drawn: Floats = mean + deviation * noise
    return drawn
