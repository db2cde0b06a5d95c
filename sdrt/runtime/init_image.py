"""A picture to start from: opened with care, brought to the size that the model takes, and drawn into latents.

The rule: the first frame, turned as its EXIF orientation says, transparency over white, 16-bit grey scaled to 8 bits,
any other mode to RGB without its colour profile; of that the largest square around the centre, resized by Lanczos.
"""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sdrt.errors import ArtefactError, UsageError
from sdrt.files import unreadable
from sdrt.runtime.backends.base import Engine, check_finite

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]

#: Formats that Pillow reads without running another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
#: As RGBA that is 256 MiB. Pillow itself refuses at 179 million pixels only.
MAX_PIXELS = 1 << 26
LIMIT_BYTES = 256 << 20
# What Pillow raises on damaged files, the one for a file that says it is enormous beside them.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class InitImage:
    """A picture as the model takes it: RGB ``pixels`` [size,size,3]."""

    pixels: Pixels

    @classmethod
    def of(cls, picture: Image.Image, size: int) -> InitImage:
        """The largest square around a picture's centre, resized.

        Args:
            picture: Of any size and mode.
            size: Width and height that the model takes.

        Raises:
            UsageError: It is no picture of Pillow's.
            ArtefactError: Its pixels are 32-bit numbers, which have no white.
        """
        if not isinstance(picture, Image.Image):
            hint = "open it first: PIL.Image.open(path)"
            raise UsageError(f"image is a {type(picture).__name__}; it must be a PIL.Image.Image", hint=hint)
        upright = to_rgb(picture)
        side = min(upright.size)
        left, top = (upright.width - side) // 2, (upright.height - side) // 2
        # Cut out first: resizing a box of a picture looks beyond its edges.
        square = upright.crop((left, top, left + side, top + side))
        return cls(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))

    @property
    def digest(self) -> str:
        """SHA-256 of the pixels, by which a picture says what it was started from."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def sample(self) -> Floats:
        """What the VAE's encoder takes: float32 [1,3,size,size] from -1 (black) to 1."""
        scaled = self.pixels.astype(np.float32) / np.float32(255) * np.float32(2) - np.float32(1)
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[np.newaxis])


def open_picture(path: Path) -> Image.Image:
    """A picture file, decoded whole: upright, RGB.

    Raises:
        ArtefactError: It cannot be read, is no picture of `FORMATS`, is damaged, or is larger than `MAX_PIXELS`.
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
        with warnings.catch_warnings():
            # What Pillow remarks on a file is either harmless or shows as an error below.
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ArtefactError(f"{path} has {picture.width}x{picture.height} pixels: too many", hint=hint)
                return to_rgb(picture)
    except UnidentifiedImageError as error:
        raise ArtefactError(f"{path} is not a picture that can be read", hint=hint) from error
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ArtefactError(f"{path} is a damaged picture: {reason}", hint=hint) from error


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture upright and in RGB, transparency over white.

    Raises:
        ArtefactError: Its pixels are 32-bit numbers, or of colours that Pillow does not convert.
    """
    turned = ImageOps.exif_transpose(picture)
    if turned.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255.
        levels = np.rint(np.asarray(turned, np.float64) * (255 / 65535)).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if turned.mode in ("I", "F"):
        hint = "save it with 8 or 16 bits a channel"
        raise ArtefactError(f"the picture has 32-bit pixels (mode {turned.mode}): how bright is white?", hint=hint)
    try:
        if turned.mode not in ("RGBA", "RGBa", "LA", "La", "PA") and "transparency" not in turned.info:
            return turned.convert("RGB")
        over = turned.convert("RGBA")
    except ValueError as error:
        hint = "save it as RGB or RGBA"
        raise ArtefactError(f"pictures of mode {turned.mode} cannot be converted", hint=hint) from error
    white = Image.new("RGBA", over.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, over).convert("RGB")


def encode_picture(encoder: Engine, init: InitImage) -> Floats:
    """What the VAE's encoder gives for a picture: [1,2c,h,w], mean and log-variance.

    Raises:
        NumericError: It gave NaN or Inf.
    """
    (spec,) = encoder.spec.inputs
    # An engine that takes no single picture gets the same one as often as it must.
    rows = encoder.spec.batch.min if encoder.spec.batch else 1
    sample = np.repeat(init.sample().astype(spec.dtype, copy=False), rows, axis=0)
    parameters = encoder.run(sample=sample)["latent_parameters"][:1].astype(np.float32, copy=False)
    check_finite(parameters, "vae_encoder")
    return parameters


def draw_latents(parameters: Floats, noise: Floats) -> Floats:
    """Draw latents from the normal distribution that the VAE's encoder gives for a picture.

    Args:
        parameters: [1,2c,h,w], mean and log-variance, the latter kept within -30..20 as diffusers'
            DiagonalGaussianDistribution does.
        noise: [n,c,h,w] standard normal.

    Returns:
        [n,c,h,w], before the scaling factor.
    """
    mean, log_variance = np.split(parameters, 2, axis=1)
    deviation = np.exp(np.float32(0.5) * np.clip(log_variance, -30, 20))
    drawn: Floats = mean + deviation * noise
    return drawn
