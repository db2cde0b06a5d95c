from __future__ import annotations

import pytest

from sdrt.artefacts.engine_set import BatchRange
from sdrt.artefacts.manifest import ComponentName
from sdrt.engines.rows import component_batch


@pytest.mark.parametrize(
    ("component", "pictures", "rows"),
    [
        # Unguided runs take one row a picture, guided ones two.
        ("unet", (1, 2, 4), (1, 4, 8)),
        ("unet", (2, 2, 3), (2, 4, 6)),
        # A fixed number of pictures is for guided runs.
        ("unet", (2, 2, 2), (4, 4, 4)),
        ("text_encoder", (2, 2, 2), (1, 4, 4)),
        ("denoise_step", (1, 2, 4), (1, 2, 4)),
        ("vae_decoder", (1, 2, 4), (1, 2, 4)),
        ("vae_encoder", (3, 3, 3), (3, 3, 3)),
    ],
)
def test_rows_for_pictures(
    component: ComponentName, pictures: tuple[int, int, int], rows: tuple[int, int, int]
) -> None:
    asked = BatchRange(min=pictures[0], opt=pictures[1], max=pictures[2])
    assert component_batch(component, asked) == BatchRange(min=rows[0], opt=rows[1], max=rows[2])


def test_any_number_of_pictures_is_any_number_of_rows() -> None:
    assert component_batch("unet", None) is None
