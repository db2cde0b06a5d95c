"""Metrics of pictures: PSNR and SSIM of 8-bit RGB pictures, and their amplified difference."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

from sdrt.errors import NumericError

Pixels = npt.NDArray[np.uint8]
Maps = npt.NDArray[np.float64]

#: SSIM's window and constants, from Wang et al. 2004, section III.C.
WINDOW, WINDOW_SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
FULL = 255.0


def psnr_db(reference: Image.Image, candidate: Image.Image) -> float | None:
    """Compute the peak signal-to-noise ratio over all channels, in dB; None if the pictures are equal.

    Raises:
        NumericError: They differ in size or mode.
    """
    first, second = _pixels(reference, candidate)
    error = float(np.mean(np.square(first.astype(np.float64) - second)))
    return 10 * math.log10(FULL**2 / error) if error else None


def ssim(reference: Image.Image, candidate: Image.Image) -> float:
    """Compute the mean structural similarity over channels and pixels; 1 if the pictures are equal.

    Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to structural
    similarity", equation 13, with a Gaussian window, at every pixel whose whole window lies in the picture.

    Raises:
        NumericError: They differ in size or mode, or are smaller than the window.
    """
    pair = _pixels(reference, candidate)
    if min(pair[0].shape[:2]) < WINDOW:
        hint = f"SSIM needs pictures of {WINDOW}x{WINDOW} pixels or more"
        raise NumericError(f"a picture of {reference.width}x{reference.height} is too small for SSIM", hint=hint)
    x, y = (pixels.astype(np.float64) for pixels in pair)
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    c1, c2 = (K1 * FULL) ** 2, (K2 * FULL) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))


def amplified_difference(reference: Image.Image, candidate: Image.Image) -> tuple[Image.Image, int]:
    """Return the absolute difference times the largest power of two that keeps it within 255, and that factor.

    Raises:
        NumericError: They differ in size or mode.
    """
    first, second = _pixels(reference, candidate)
    difference = np.abs(first.astype(np.int16) - second)
    factor = 2 ** int(math.log2(FULL / max(1, difference.max())))
    return Image.fromarray((difference * factor).astype(np.uint8)), factor


def _pixels(reference: Image.Image, candidate: Image.Image) -> tuple[Pixels, Pixels]:
    """Return both pictures as uint8 [h, w, 3]; nothing is resized or broadcast."""
    for what, wanted, found in (
        ("size", reference.size, candidate.size),
        ("mode", "RGB", reference.mode),
        ("mode", "RGB", candidate.mode),
    ):
        if wanted != found:
            hint = "only pictures of one size in RGB can be compared"
            raise NumericError(f"a picture's {what} is {found}; it should be {wanted}", hint=hint)
    return np.asarray(reference), np.asarray(candidate)


def _windowed(values: Maps) -> Maps:
    """Compute Gaussian-weighted means [h-10, w-10, c] over the windows of values [h, w, c]."""
    distance = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(distance**2) / (2 * WINDOW_SIGMA**2))
    weights /= weights.sum()
    rows, columns = values.shape[0] - WINDOW + 1, values.shape[1] - WINDOW + 1
    down = sum((w * values[i : i + rows] for i, w in enumerate(weights)), np.zeros(()))
    return sum((w * down[:, i : i + columns] for i, w in enumerate(weights)), np.zeros(()))
