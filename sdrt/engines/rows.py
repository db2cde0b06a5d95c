"""Rows of a component's batch axis for a number of pictures."""

from __future__ import annotations

from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import DEEPCACHE, ComponentName

# Guidance runs the prompt and the negative prompt as one batch: two rows a picture.
ROWS_PER_GUIDED_PICTURE = 2


def component_batch(component: ComponentName, pictures: BatchRange | None) -> BatchRange | None:
    """Return the rows of a component for a range of pictures, or None, which is any number, for None."""
    return None if pictures is None else component_rows(component, pictures)


def component_rows(component: ComponentName, pictures: BatchRange, *, beside_step: bool = False) -> BatchRange:
    """Return the rows of a component for a range of pictures.

    The UNet, and each of DeepCache's passes, takes one row a picture, or two with guidance. If the number of pictures
    is fixed, it takes guided batches only, unless ``beside_step``: then denoise_step runs those. The text encoder takes
    any number of distinct prompts up to two a picture.
    """
    if component in ("denoise_step", "vae_encoder", "vae_decoder"):
        return pictures
    is_unet = component in ("unet", *DEEPCACHE)
    fixed = is_unet and pictures.min == pictures.max and not beside_step
    least = pictures.min * ROWS_PER_GUIDED_PICTURE if fixed else pictures.min if is_unet else 1
    return BatchRange(min=least, opt=pictures.opt * ROWS_PER_GUIDED_PICTURE, max=pictures.max * ROWS_PER_GUIDED_PICTURE)
