"""Components relative to the machine's ceiling, after Williams, Waterman and Patterson 2009, "Roofline"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sdrt.bench.schema import ContenderResult, Point, Sample, Warm
from sdrt.bench.statistics import paired

if TYPE_CHECKING:
    from sdrt.artefacts.bundle import Bundle
    from sdrt.artefacts.manifest import Component, ComponentName, Precision

WEIGHT_BYTES: Mapping[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
#: Bytes of a value of an input or output: engines take and return fp32 in every precision.
VALUE_BYTES = 4
#: Rows a picture: guidance encodes the prompt and the empty negative prompt, and doubles the UNet's rows.
GUIDED_ROWS = 2

CeilingRounds = Mapping[int, Sequence[Mapping[str, Any]]]


def points(contenders: Sequence[ContenderResult], bundle: Bundle, limits: CeilingRounds) -> tuple[Point, ...]:
    """Return a point for every component with times of its own.

    Args:
        contenders: Contenders with their figures.
        bundle: Bundle with the FLOPs, parameters and shapes of each component.
        limits: Ceilings of the machine in each round, by batch.
    """
    found = []
    for contender in contenders:
        for warm in contender.warm:
            for component, seconds, rows in _timed(warm):
                if component in bundle.manifest.components:
                    part = bundle.manifest.components[component]
                    found.append(_point(contender, warm.batch, component, part, seconds, rows, limits[warm.batch]))
    return tuple(point for point in found if point.flops)


def _timed(warm: Warm) -> list[tuple[ComponentName, Sample, int]]:
    """Return the components with times of their own: name, seconds, and number of rows computed in them."""
    timed: list[tuple[ComponentName, Sample, int]] = []
    if warm.unet is not None:
        timed.append(("unet", warm.unet_step, GUIDED_ROWS * warm.batch))
    if warm.vae_decoder is not None:
        timed.append(("vae_decoder", warm.vae_decoder, warm.batch))
    # Some contenders encode every copy of a batch's repeated prompt and some do not, so only a batch of 1 compares.
    if warm.text_encoder is not None and warm.batch == 1:
        timed.append(("text_encoder", warm.text_encoder, GUIDED_ROWS))
    return timed


def _point(
    contender: ContenderResult,
    batch: int,
    component: ComponentName,
    part: Component,
    seconds: Sample,
    rows: int,
    limits: Sequence[Mapping[str, Any]],
) -> Point:
    flops, precision = rows * part.flops, component_precision(contender, component)
    ceilings = [row["products"].get(precision, {}).get("gflops") for row in limits]
    share = None
    if len(ceilings) == len(seconds.values) and all(ceilings):
        share = paired([flops / value / 1e9 for value in seconds.values], ceilings)
    return Point(
        contender=contender.name,
        component=component,
        batch=batch,
        precision=precision,
        flops=flops,
        least_bytes=least_bytes(part, precision, rows),
        gflops=flops / seconds.p50 / 1e9,
        share=share,
    )


def component_precision(contender: ContenderResult, component: ComponentName) -> Precision:
    """Return the precision of a component's engine, or else that of the contender as a whole."""
    parts = contender.build.components if contender.build is not None else ()
    return next((part.precision for part in parts if part.component == component), contender.precision)


def least_bytes(part: Component, precision: Precision, rows: int) -> int:
    """Return the least bytes to move for this many rows: the weights once, and every input and output."""
    values = 0
    for spec in (*part.inputs, *part.outputs):
        count = 1
        for axis in spec.shape:
            count *= axis if isinstance(axis, int) else 1
        values += count
    return part.parameters * WEIGHT_BYTES[precision] + rows * values * VALUE_BYTES
