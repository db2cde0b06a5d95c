"""How many pictures are denoised together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdrt.errors import EngineError

if TYPE_CHECKING:
    from sdrt.artefacts.engine_set import BatchRange
    from sdrt.runtime.request import Request

#: Pictures denoised together, unless the engine was made fastest for more. More gain little on a CPU and cost memory
#: in proportion.
PICTURES_AT_ONCE = 4


def pictures_at_once(request: Request, limits: BatchRange | None, *, fused: bool) -> int:
    """`PICTURES_AT_ONCE`, or as many as the engine was made fastest for if that is more; never more than it takes.

    Args:
        request: What is asked.
        limits: The rows that the engine which runs the steps takes; None takes any.
        fused: Whether that is denoise_step, whose rows are pictures.

    Raises:
        EngineError: The engine takes not even one.
    """
    if limits is None:
        return PICTURES_AT_ONCE
    rows = 2 if not fused and request.guided else 1
    size = min(max(PICTURES_AT_ONCE, limits.opt // rows, -(-limits.min // rows)), limits.max // rows)
    if size < 1:
        hint = "build engines with another --batch"
        raise EngineError(f"the UNet takes batches of {limits} rows; a guided picture needs 2", hint=hint)
    if request.guidance_interval is not None and limits.min > 1:
        hint = "leave guidance_interval out, or name a --backend whose engines were built without --batch"
        raise EngineError(f"the UNet takes {limits.min} rows at least; a step without guidance has 1", hint=hint)
    return size
