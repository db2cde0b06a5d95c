"""PSNR and SSIM equal torchmetrics'; different sizes and types are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from sdrt.compare.images import amplified_difference, psnr_db, ssim
from sdrt.errors import NumericError


def picture(seed: int, height: int = 48, width: int = 64) -> Image.Image:
    """Draw smooth colours under grain, so that SSIM sees structure."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / rng.uniform(3, 9) + columns / rng.uniform(3, 9)) for _ in range(3)]
    levels = 128 + 90 * np.stack(waves, -1) + rng.normal(0, 10, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def moved(image: Image.Image, by: int, at: tuple[int, int] = (20, 30)) -> Image.Image:
    """Return the picture with one value changed."""
    pixels = np.asarray(image).copy()
    pixels[*at, 1] = (int(pixels[*at, 1]) + by) % 256
    return Image.fromarray(pixels)


@pytest.mark.parametrize("noise", [1, 8, 60])
def test_they_equal_torchmetrics(noise: int) -> None:
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    reference = picture(0)
    grain = np.random.default_rng(1).normal(0, noise, (48, 64, 3))
    candidate = Image.fromarray((np.asarray(reference) + grain).clip(0, 255).astype(np.uint8))
    first, second = (
        torch.from_numpy(np.asarray(each, np.float64).transpose(2, 0, 1)[np.newaxis]) for each in (reference, candidate)
    )
    # Both compute in float64; torchmetrics squares in another order.
    expected = peak_signal_noise_ratio(second, first, data_range=255.0)
    assert psnr_db(reference, candidate) == pytest.approx(float(expected), rel=1e-6)
    _, places = structural_similarity_index_measure(second, first, data_range=255.0, return_full_image=True)
    # torchmetrics mirrors the border to fill windows that reach beyond it; Wang et al. and sdrt omit those windows.
    expected = places[..., 5:-5, 5:-5].mean()
    assert ssim(reference, candidate) == pytest.approx(float(expected), abs=1e-6)


def test_equal_pictures_have_no_psnr_and_an_ssim_of_one() -> None:
    assert psnr_db(picture(0), picture(0)) is None
    assert ssim(picture(0), picture(0)) == pytest.approx(1.0, abs=1e-12)


def test_one_value_by_one_level_is_seen() -> None:
    reference = picture(0)
    found = psnr_db(reference, moved(reference, 1))
    assert found == pytest.approx(10 * math.log10(255**2 * 48 * 64 * 3))
    assert ssim(reference, moved(reference, 1)) < 1


def test_another_picture_is_not_like_it() -> None:
    assert ssim(picture(0), picture(5)) < 0.5
    found = psnr_db(picture(0), picture(5))
    assert found is not None
    assert found < 15


def test_the_difference_is_amplified_as_far_as_it_fits() -> None:
    reference = picture(0)
    shown, factor = amplified_difference(reference, moved(reference, 3))
    assert factor == 64
    assert np.asarray(shown).max() == 3 * 64
    assert np.count_nonzero(np.asarray(shown)) == 1
    black, factor = amplified_difference(reference, reference)
    assert np.asarray(black).max() == 0
    assert factor == 128
    inverse = Image.fromarray(255 - np.asarray(Image.new("RGB", (16, 16))))
    shown, factor = amplified_difference(Image.new("RGB", (16, 16)), inverse)
    assert (np.asarray(shown).min(), factor) == (255, 1)


@pytest.mark.parametrize("measure", [psnr_db, ssim, amplified_difference])
@pytest.mark.parametrize("other", [picture(0, 48, 1), picture(0, 1, 64), picture(0).convert("L")])
def test_pictures_of_other_sizes_or_modes_are_refused(measure: object, other: Image.Image) -> None:
    assert callable(measure)
    for pair in ((picture(0), other), (other, picture(0))):
        with pytest.raises(NumericError, match="it should be"):
            measure(*pair)


def test_pictures_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(NumericError, match="too small for SSIM"):
        ssim(picture(0, 10, 64), picture(1, 10, 64))
