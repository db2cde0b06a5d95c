"""What a user asks a build for."""

from __future__ import annotations

from dataclasses import dataclass

from sdrt.bundle import COMPONENTS, ComponentName, Precision
from sdrt.engines.engine_set import BackendName, BatchRange

# Guidance runs the prompt and the negative prompt as one batch: two rows a picture.
ROWS_PER_GUIDED_PICTURE = 2


@dataclass(frozen=True)
class BuildRequest:
    """Which engines to build.

    Attributes:
        backend: The backend's name.
        precision: How the engines compute; None is the backend's choice on this machine.
        components: What to build.
        threads: Threads that building may take; None is all that this process may use.
        batch: Pictures at once; None leaves the batch free where the backend can.
    """

    backend: BackendName
    precision: Precision | None = None
    components: tuple[ComponentName, ...] = COMPONENTS
    threads: int | None = None
    batch: BatchRange | None = None


def component_batch(component: ComponentName, pictures: BatchRange | None) -> BatchRange | None:
    """The rows a component must take for so many pictures at once.

    The UNet takes one row a picture, or two with guidance; built for one number of pictures alone, it takes guided
    batches only. The text encoder takes any number of distinct prompts up to two a picture.
    """
    if pictures is None or component in ("denoise_step", "vae_encoder", "vae_decoder"):
        return pictures
    fixed = component == "unet" and pictures.min == pictures.max
    least = pictures.min * ROWS_PER_GUIDED_PICTURE if fixed else pictures.min if component == "unet" else 1
    return BatchRange(min=least, opt=pictures.opt * ROWS_PER_GUIDED_PICTURE, max=pictures.max * ROWS_PER_GUIDED_PICTURE)
