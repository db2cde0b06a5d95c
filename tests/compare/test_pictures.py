"""Pictures unlike the reference's fail, as do pictures that no longer show their prompt; none passes unchecked."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from demo.scenes import draw
from sdrt.compare.pictures import Pair, compare_pictures, contact_sheet, label, scene_verdict, strip
from sdrt.compare.prompts import PromptSeed
from sdrt.compare.scene_grammar import parse_caption
from sdrt.compare.schema import PictureResult, ToleranceRecord
from tests.compare.comparisons import PICTURE_LIMITS

CAPTION = "a large red circle on white"
#: So loose that only the other checks can fail.
LOOSE = ToleranceRecord(psnr_db=1, ssim=0, reason="for this test")


def scene(caption: str = CAPTION) -> Image.Image:
    return draw(parse_caption(caption), 256, random.Random(0))


def grain(picture: Image.Image, levels: int) -> Image.Image:
    rng = np.random.default_rng(0)
    noisy = np.asarray(picture).astype(int) + rng.integers(-levels, levels + 1, (256, 256, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def compare(
    candidate: Image.Image | None,
    tolerance: ToleranceRecord | None = PICTURE_LIMITS,
    *,
    reference: Image.Image | None = None,
    scored: bool = True,
    lpips: Callable[[Image.Image, Image.Image], float] | None = None,
) -> PictureResult:
    pair = Pair(PromptSeed(CAPTION, 3), reference or scene(), candidate, "" if candidate else "the unet gave NaN")
    (found,) = compare_pictures([pair], tolerance, scored=scored, lpips=lpips)
    return found


def test_the_same_picture_passes() -> None:
    found = compare(scene())
    assert (found.outcome, found.reason, found.psnr_db) == ("passed", "", None)
    assert found.ssim == pytest.approx(1)
    assert (found.reference_verdict, found.candidate_verdict) == ("right", "right")
    assert (found.prompt, found.seed) == (CAPTION, 3)
    assert compare(grain(scene(), 1)).outcome == "passed"


def test_another_picture_fails_and_says_by_how_much() -> None:
    found = compare(grain(scene(), 40))
    assert found.outcome == "failed"
    assert "dB is below 40 dB; SSIM" in found.reason


def test_a_picture_that_no_longer_obeys_fails_whatever_its_figures() -> None:
    found = compare(scene("a large blue circle on white"), LOOSE)
    assert found.outcome == "failed"
    assert found.reason == "the reference shows its prompt, the candidate does not (wrong: colour)"
    assert compare(scene("a large blue circle on white"), LOOSE, scored=False).outcome == "passed"


def test_disobedience_of_the_reference_is_not_held_against_the_candidate() -> None:
    wrong = scene("a large blue circle on white")
    found = compare(wrong, reference=wrong)
    assert (found.outcome, found.reference_verdict) == ("passed", "wrong: colour")
    assert compare(scene(), LOOSE, reference=wrong).outcome == "passed"


def test_lpips_is_held_to_its_limit_where_it_is_measured() -> None:
    limits = PICTURE_LIMITS.model_copy(update={"lpips": 0.1})
    assert compare(scene(), limits).lpips is None
    assert compare(scene(), limits, lpips=lambda *_: 0.05).outcome == "passed"
    assert compare(scene(), limits, lpips=lambda *_: 0.2).reason == "LPIPS 0.2000 is above 0.1"


def test_no_picture_never_passes() -> None:
    found = compare(None)
    assert (found.outcome, found.reason, found.ssim) == ("failed", "the unet gave NaN", None)


def test_without_a_tolerance_nothing_is_verified() -> None:
    found = compare(scene(), None)
    assert found.outcome == "unverified"
    assert found.psnr_db is None


@pytest.mark.parametrize("limits", [{"lpips": 0.1}, {"relative_l2": 0.1}, {}])
def test_a_tolerance_that_holds_nothing_verifies_nothing(limits: dict[str, float]) -> None:
    tolerance = ToleranceRecord(reason="for this test", **limits)
    found = compare(scene(), tolerance)
    assert (found.outcome, found.reason) == ("unverified", "its tolerance limits none of the metrics measured")
    # Its score is still reported.
    assert compare(scene("a large blue circle on white"), tolerance).outcome == "failed"


def test_lpips_alone_verifies_where_it_is_measured() -> None:
    tolerance = ToleranceRecord(lpips=0.1, reason="for this test")
    assert compare(scene(), tolerance, lpips=lambda *_: 0.05).outcome == "passed"
    assert compare(scene(), tolerance, lpips=lambda *_: 0.2).outcome == "failed"


def test_a_reference_of_one_colour_proves_nothing() -> None:
    black = Image.new("RGB", (256, 256))
    found = compare(black, reference=black, scored=False)
    assert (found.outcome, found.reason) == (
        "unverified",
        "the reference is of a single colour, which proves nothing",
    )


def test_words_outside_the_grammar_have_no_verdict() -> None:
    assert scene_verdict(scene(), CAPTION) == "right"
    assert (
        scene_verdict(scene(), "a large red square above a ring on white")
        == "wrong: count, colour, shape, size, relation"
    )
    assert scene_verdict(scene(), "an astronaut riding a horse") is None
    assert scene_verdict(Image.new("RGB", (64, 64)), CAPTION) is None


def test_the_sheet_shows_reference_candidate_and_difference() -> None:
    candidate = scene("a large blue circle on white")
    pairs = [Pair(PromptSeed(CAPTION, 3), scene(), candidate), Pair(PromptSeed("ü" * 200, 4), scene(), None, "NaN")]
    results = compare_pictures(pairs, PICTURE_LIMITS, scored=True, lpips=None)
    sheet = contact_sheet(pairs, results)
    assert sheet.size == (768, 2 * 278)
    for column, picture in enumerate(strip(pairs[0])[0]):
        cell = sheet.crop((256 * column, 22, 256 * (column + 1), 278))
        assert np.array_equal(np.asarray(cell), np.asarray(picture))
    line = np.asarray(sheet)[:22]
    assert line.min() < 64 < 255 == line.max()


def test_equal_pictures_are_called_equal() -> None:
    assert label(compare(scene())) == f"passed: equal, SSIM 1.0000; {CAPTION!r}, seed 3"
    assert label(compare(None)) == f"failed: the unet gave NaN; {CAPTION!r}, seed 3"
