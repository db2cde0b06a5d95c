"""The number of pictures that are denoised together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdrt.errors import EngineError

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BatchRange
    from sdrt.runtime.request import Request

#: Pictures denoised together, unless the engine was optimised for more. On a CPU more pictures are hardly faster, and
#: memory grows in proportion.
PICTURES_AT_ONCE = 4


def pictures_at_once(request: Request, limits: BatchRange | None, *, fused: bool) -> int:
    """Return the number of pictures to denoise together.

    That is `PICTURES_AT_ONCE`, or the number that the engine was optimised for if larger, within the engine's range.

    Args:
        request: The request.
        limits: Batch range in rows of the engine that runs the steps; None is no limit.
        fused: Whether that engine is denoise_step, whose rows are pictures.

    Raises:
        EngineError: The engine's range does not allow even one picture, or not the steps without guidance.
    """
    if limits is None:
        return PICTURES_AT_ONCE
    rows = 2 if not fused and request.guided else 1
    size = min(max(PICTURES_AT_ONCE, limits.opt // rows, -(-limits.min // rows)), limits.max // rows)
    if size < 1:
        hint = "build engines with another --batch"
        raise EngineError(f"the UNet takes batches of {limits} rows; a guided picture needs 2", hint=hint)
    if request.guidance_interval is not None and limits.min > 1:
        hint = "leave guidance_interval out, or give a --backend whose engines were built without --batch"
        raise EngineError(f"the UNet takes at least {limits.min} rows; a step without guidance has 1", hint=hint)
    return size
