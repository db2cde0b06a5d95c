"""Pictures rounded as by diffusers, and PNG files with their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from sdrt.errors import NumericError, ResourceError
from sdrt.runtime.images import is_degenerate, to_pictures, write_png
from sdrt.runtime.picture_record import parse_parameters, read_record
from tests.helpers.records import picture_record


def sample(seed: int = 0) -> np.ndarray:
    """Return two pictures' decoder output, some of it beyond -1..1."""
    return np.random.default_rng(seed).normal(0, 0.6, (2, 3, 24, 40)).astype(np.float32)


def test_pictures_equal_diffusers() -> None:
    # Every level's exact middle, too, where the rounding mode matters.
    middles = ((np.arange(255) + 0.5) / 255 * 2 - 1).astype(np.float32)
    decoded = sample()
    decoded[0, 0].flat[:255] = middles
    theirs = VaeImageProcessor().postprocess(torch.from_numpy(decoded), output_type="pil")
    ours = to_pictures(decoded)
    assert [picture.size for picture in ours] == [(40, 24), (40, 24)]
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(our), np.asarray(their))


def test_black_white_and_clipping() -> None:
    decoded = np.array([-1, 1, -7, 9], np.float32).reshape(1, 1, 2, 2).repeat(3, axis=1)
    assert np.asarray(to_pictures(decoded)[0])[:, :, 0].tolist() == [[0, 255], [0, 255]]


def test_half_precision_samples_become_pictures() -> None:
    half = sample().astype(np.float16)
    np.testing.assert_array_equal(np.asarray(to_pictures(half)[1]), np.asarray(to_pictures(half.astype(np.float32))[1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_numbers_never_become_a_picture(value: float) -> None:
    decoded = sample()
    decoded[1, 2, 3, 4] = value
    with pytest.raises(NumericError, match="vae_decoder"):
        to_pictures(decoded)


@pytest.mark.parametrize("level", [-1.0, 0.0, 0.3])
def test_a_picture_of_one_colour_is_degenerate(level: float) -> None:
    decoded = np.full((1, 3, 8, 8), level, np.float32)
    decoded[0, 1] = 0.5
    assert is_degenerate(to_pictures(decoded)[0])
    decoded[0, 1, 7, 7] = 0.6
    assert not is_degenerate(to_pictures(decoded)[0])


def test_a_png_carries_picture_text_and_record(tmp_path: Path) -> None:
    path, picture = tmp_path / "picture.png", to_pictures(sample())[0]
    record = picture_record(prompt="eine Katze, \u732b", negative_prompt="Hund")
    write_png(picture, path, record)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(opened), np.asarray(picture))
        text: dict[str, Any] = opened.text  # type: ignore[attr-defined]
    assert sorted(text) == ["parameters", "sdrt"]
    assert parse_parameters(text["parameters"])["Prompt"] == record["prompt"]
    assert read_record(path) == record
    assert list(tmp_path.iterdir()) == [path]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("1.png", "2.png", "3.png"))
    record = picture_record()
    write_png(to_pictures(sample())[0], one, record)
    write_png(to_pictures(sample())[0], two, dict(reversed(record.items())))
    write_png(to_pictures(sample())[1], other, record)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != other.read_bytes()


def test_an_existing_picture_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    path, (first, second) = tmp_path / "picture.png", to_pictures(sample())
    write_png(first, path, picture_record(seed=1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_png(second, path, picture_record(guidance_scale=float("nan")))
    assert path.read_bytes() == before
    write_png(second, path, picture_record(seed=2))
    assert read_record(path)["seed"] == 2


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(ResourceError, match="a part of the path is a file, not a folder"):
        write_png(to_pictures(sample())[0], in_the_way / "picture.png", picture_record())
    assert list(tmp_path.iterdir()) == [in_the_way]
