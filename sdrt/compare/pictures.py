"""Pictures compared with the reference's: PSNR, SSIM, LPIPS, the scorer's verdict, and the contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from PIL import Image, ImageDraw

from sdrt.compare.images import amplified_difference, psnr_db, ssim
from sdrt.compare.perceptual import Lpips
from sdrt.compare.prompts import PromptSeed
from sdrt.compare.schema import Outcome, PictureResult, ToleranceRecord
from sdrt.compare.scorer import score
from sdrt.errors import UsageError
from sdrt.runtime.images import is_degenerate

#: Verdict on a picture that shows everything in its caption.
RIGHT = "right"
#: Width of each picture on the contact sheet, and the height of the line above a row.
CELL, LINE = 256, 22


@dataclass(frozen=True)
class Pair:
    """The same picture from both sides. ``candidate`` is None if it could not be made, and ``reason`` says why."""

    prompt_seed: PromptSeed
    reference: Image.Image
    candidate: Image.Image | None
    reason: str = ""


def compare_pictures(
    pairs: Sequence[Pair], tolerance: ToleranceRecord | None, *, scored: bool, lpips: Lpips | None
) -> tuple[PictureResult, ...]:
    """Compare each candidate with its reference.

    Args:
        pairs: The pictures.
        tolerance: Smallest PSNR and SSIM, largest LPIPS; None leaves the pictures unverified.
        scored: Whether the prompts are captions of the demo's grammar, so that its scorer can judge the pictures.
        lpips: The LPIPS distance; None if it is not installed.

    Returns:
        One result per pair.
    """
    return tuple(_compare(pair, tolerance, scored, lpips) for pair in pairs)


def _compare(pair: Pair, tolerance: ToleranceRecord | None, scored: bool, lpips: Lpips | None) -> PictureResult:
    prompt_seed, reference, candidate = pair.prompt_seed, pair.reference, pair.candidate
    expected = scene_verdict(reference, prompt_seed.prompt) if scored else None
    if candidate is None:
        return PictureResult(
            prompt=prompt_seed.prompt,
            seed=prompt_seed.seed,
            psnr_db=None,
            ssim=None,
            lpips=None,
            reference_verdict=expected,
            candidate_verdict=None,
            tolerance=tolerance,
            outcome="failed",
            reason=pair.reason or "there is no picture",
        )
    found = PictureResult(
        prompt=prompt_seed.prompt,
        seed=prompt_seed.seed,
        psnr_db=psnr_db(reference, candidate),
        ssim=ssim(reference, candidate),
        lpips=lpips(reference, candidate) if lpips else None,
        reference_verdict=expected,
        candidate_verdict=scene_verdict(candidate, prompt_seed.prompt) if scored else None,
        tolerance=tolerance,
        outcome="unverified",
        reason="",
    )
    outcome, reason = _judge(found, reference)
    return found.model_copy(update={"outcome": outcome, "reason": reason})


def _judge(found: PictureResult, reference: Image.Image) -> tuple[Outcome, str]:
    """Return the outcome and the reason if it is not "passed".

    A reference of a single colour proves nothing, so it never passes.
    """
    limits = found.tolerance
    if limits is None:
        return "unverified", "no tolerance is given for pictures of this backend and precision"
    reasons = []
    if limits.psnr_db is not None and found.psnr_db is not None and not found.psnr_db >= limits.psnr_db:
        reasons.append(f"PSNR {found.psnr_db:.1f} dB is below {limits.psnr_db:g} dB")
    if limits.ssim is not None and (found.ssim is None or not found.ssim >= limits.ssim):
        reasons.append(f"SSIM {found.ssim:.4f} is below {limits.ssim:g}")
    if limits.lpips is not None and found.lpips is not None and not found.lpips <= limits.lpips:
        reasons.append(f"LPIPS {found.lpips:.4f} is above {limits.lpips:g}")
    if found.reference_verdict == RIGHT and found.candidate_verdict != RIGHT:
        reasons.append(f"the reference shows its prompt, the candidate does not ({found.candidate_verdict})")
    if reasons:
        return "failed", "; ".join(reasons)
    if is_degenerate(reference):
        return "unverified", "the reference is of a single colour, which proves nothing"
    if limits.psnr_db is None and limits.ssim is None and (limits.lpips is None or found.lpips is None):
        return "unverified", "its tolerance limits none of the metrics measured"
    return "passed", ""


def scene_verdict(picture: Image.Image, caption: str) -> str | None:
    """Return "right" if a picture of the demo checkpoint shows its caption, else "wrong: " and the wrong aspects.

    Returns None if the caption is not of the demo's grammar, or the picture is not square or too small to be judged.
    """
    try:
        verdict = score(picture, caption)
    except UsageError:
        return None
    wrong = [field.name for field in fields(verdict) if not getattr(verdict, field.name)]
    return f"wrong: {', '.join(wrong)}" if wrong else RIGHT


def contact_sheet(pairs: Sequence[Pair], results: Sequence[PictureResult]) -> Image.Image:
    """Draw reference, candidate and amplified difference side by side, one labelled row per picture.

    Returns:
        An RGB picture of three columns of 256 pixels.
    """
    height = CELL + LINE
    sheet = Image.new("RGB", (3 * CELL, max(1, len(pairs)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (pair, result) in enumerate(zip(pairs, results, strict=True)):
        top = row * height
        draw.text((4, top + 5), _ascii(label(result), 3 * CELL // 7), fill="black")
        for column, picture in enumerate(strip(pair)[0]):
            sheet.paste(picture.resize((CELL, CELL), Image.Resampling.LANCZOS), (column * CELL, top + LINE))
    return sheet


def strip(pair: Pair) -> tuple[tuple[Image.Image, Image.Image, Image.Image], int | None]:
    """Return reference, candidate, amplified difference and its factor; grey and None if there is no candidate."""
    if pair.candidate is None:
        blank = Image.new("RGB", pair.reference.size, "grey")
        return (pair.reference, blank, blank), None
    difference, factor = amplified_difference(pair.reference, pair.candidate)
    return (pair.reference, pair.candidate, difference), factor


def label(result: PictureResult) -> str:
    """Return a picture's result as one line: the outcome, the figures, the prompt and the seed."""
    figures = [] if result.ssim is None else [figure_psnr(result), f"SSIM {result.ssim:.4f}"]
    if result.lpips is not None:
        figures.append(f"LPIPS {result.lpips:.4f}")
    return f"{result.outcome}: {', '.join(figures) or result.reason}; {result.prompt!r}, seed {result.seed}"


def figure_psnr(result: PictureResult) -> str:
    """Format the PSNR; equal pictures have none."""
    return "equal" if result.psnr_db is None else f"{result.psnr_db:.1f} dB"


def _ascii(text: str, most: int) -> str:
    """Return the text in ASCII, which Pillow's default font can draw, cut to a length."""
    plain = text.encode("ascii", "replace").decode()
    return plain if len(plain) <= most else plain[: most - 3] + "..."
