"""Noise that depends on its seed alone, and latents from files of every kind."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdrt.errors import ArtefactError, ResourceError, UsageError
from sdrt.limits import MAX_SEED
from sdrt.sampling.latents import LIMITS, check_latents, check_latents_of, load_latents, save_latents, unit_noise

SHAPE = (4, 8, 8)


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_picture_depends_on_its_own_seed_only() -> None:
    together = unit_noise([3, 0, 2**32, 3])
    assert together.shape == (4, 4, 64, 64)
    assert together.dtype == np.float32
    for row, seed in zip(together, [3, 0, 2**32, 3], strict=True):
        np.testing.assert_array_equal(row, unit_noise([seed])[0])
    assert not np.array_equal(together[0], together[1])
    assert not np.array_equal(together[1], together[2])


def test_the_noise_of_a_seed_never_changes() -> None:
    # Drawn once with NumPy 2.4 and kept: pictures of a seed must survive upgrades. Rounding to float32 absorbs the last
    # bit of the platform's log and exp.
    first = unit_noise([0])[0, 0, 0, :4]
    np.testing.assert_array_equal(first, np.array([-0.20597403, -0.12884495, -0.2897899, -1.2719433], np.float32))


def test_the_noise_is_standard_normal() -> None:
    noise = unit_noise(range(64))
    # A million values: the mean's standard error is 0.001, the deviation's 0.0007, the kurtosis' 0.005. Five of each.
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 1) < 0.0035
    assert abs((noise.astype(np.float64) ** 4).mean() - 3) < 0.05
    seeds = noise.reshape(64, -1)
    # Neighbouring seeds are independent: 63 correlations of 16,384 values, standard error 0.008.
    assert np.abs(np.sum(seeds[:-1] * seeds[1:], axis=1) / seeds.shape[1]).max() < 0.04


@pytest.mark.parametrize("seed", [0, 1, 2**32, MAX_SEED, np.int64(5)])
def test_seeds_in_range_work(seed: int) -> None:
    assert np.isfinite(unit_noise([seed], SHAPE)).all()


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**64, 10**30, 1.5, "abc", None, True])
def test_seeds_out_of_range_are_refused(seed: Any) -> None:
    with pytest.raises(UsageError, match=f"seed is .*0 to {MAX_SEED}"):
        unit_noise([0, seed], SHAPE)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_floating_dtype_and_order_is_read(dtype: str, order: str, tmp_path: Path) -> None:
    noise = unit_noise([1, 2], SHAPE).astype(dtype)
    path = tmp_path / "latents.npy"
    path.write_bytes(npy(np.array(noise, order=order)))  # type: ignore[call-overload]
    loaded = load_latents(path, 2, SHAPE)
    assert loaded.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(loaded, noise.astype(np.float32))


def test_one_picture_may_lack_the_first_axis(tmp_path: Path) -> None:
    path = tmp_path / "latents.npy"
    noise = unit_noise([1], SHAPE)
    path.write_bytes(npy(noise[0]))
    np.testing.assert_array_equal(load_latents(path, 1, SHAPE), noise)
    with pytest.raises(ArtefactError, match=r"shape \(4, 8, 8\); it must be \(2, 4, 8, 8\)"):
        load_latents(path, 2, SHAPE)


def test_saved_latents_are_loaded_bit_for_bit(tmp_path: Path) -> None:
    path, noise = tmp_path / "latents.npy", unit_noise([5, 6])
    save_latents(path, noise)
    np.testing.assert_array_equal(load_latents(path, 2), noise)
    assert path.read_bytes() == npy(noise)
    assert list(tmp_path.iterdir()) == [path]


def test_latents_that_cannot_be_written_leave_nothing(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(ResourceError, match="a part of the path is a file, not a folder"):
        save_latents(in_the_way / "latents.npy", unit_noise([1], SHAPE))
    assert list(tmp_path.iterdir()) == [in_the_way]


def _zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("latents.npy", npy(unit_noise([1], SHAPE)))
    return stream.getvalue()


GOOD = npy(unit_noise([1], SHAPE))


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "magic only": GOOD[:6],
        "cut header": GOOD[:40],
        "cut by a byte": GOOD[:-1],
        "a byte more": GOOD + b"\0",
        "pickled": pickle.dumps(unit_noise([1], SHAPE)),
        "npz": _zipped(),
        "version 9": GOOD.replace(b"NUMPY\1", b"NUMPY\x09", 1),
        "objects": npy(np.array([{}], dtype=object)),
        "a huge shape": GOOD.replace(b"(1, 4, 8, 8), }      ", b"(1, 4, 99999999, 8)}", 1),
        "a negative shape": GOOD.replace(b"(1, 4, 8, 8)", b"(1, 4,-8,-8)", 1),
        "nested": GOOD.replace(b"{'descr'", b"(" * 8, 1),
        "no dict": GOOD.replace(b"{'descr'", b"'descr' ", 1),
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_npy_of_numbers_is_refused(content: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "latents.npy"
    path.write_bytes(content[1])
    with pytest.raises(ArtefactError, match=r"is not an \.npy file of numbers"):
        load_latents(path, 1, SHAPE)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, *SHAPE), np.int64), "are int64"),
        (np.zeros((1, *SHAPE), np.complex64), "are complex64"),
        (np.zeros((1, 4, 8, 9), np.float32), r"shape \(1, 4, 8, 9\)"),
        (np.zeros((3, *SHAPE), np.float16), r"shape \(3, 4, 8, 8\)"),
        (np.full((1, *SHAPE), np.nan, np.float32), "NaN"),
        (np.full((1, *SHAPE), 1e300), "beyond float32"),
    ],
)
def test_arrays_that_are_no_latents_are_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        check_latents(array, 1, SHAPE)
    path = tmp_path / "latents.npy"
    path.write_bytes(npy(array))
    with pytest.raises(ArtefactError, match=rf"latents\.npy: .*{message}"):
        load_latents(path, 1, SHAPE)


@pytest.mark.parametrize("shape", [(4, 64, 64), (4, 8, 8), (1, 1, 1), (16, 96, 64), (LIMITS[0], 2, 3)])
@pytest.mark.parametrize("count", [1, 2])
def test_latents_of_any_model_are_read_where_the_model_is_not_known(
    shape: tuple[int, int, int], count: int, tmp_path: Path
) -> None:
    path, noise = tmp_path / "latents.npy", unit_noise(range(count), shape)
    save_latents(path, noise)
    np.testing.assert_array_equal(load_latents(path, count), noise)
    if count == 1:
        save_latents(path, noise[0])
        np.testing.assert_array_equal(load_latents(path, 1), noise)
    check_latents_of(path, noise, shape)
    for other in ((shape[0] + 1, *shape[1:]), (*shape[:2], shape[2] + 1), (shape[0], shape[1] + 1, shape[2])):
        with pytest.raises(ArtefactError, match=r"latents\.npy: latents have shape") as refused:
            check_latents_of(path, noise, other)
        assert str((count, *other)) in refused.value.message


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((3, 4, 8, 8), 2),
        ((4, 8, 8), 2),
        ((4, 8, 8), 4),
        ((2, 4, 8), 2),
        ((8, 8), 1),
        ((), 1),
        ((1, 1, 4, 8, 8), 1),
        ((1, 0, 8, 8), 1),
        ((1, LIMITS[0] + 1, 1, 1), 1),
        ((1, 1, LIMITS[1] + 1, 1), 1),
        ((1, 1, 1, LIMITS[2] + 1), 1),
    ],
)
def test_shapes_that_no_models_latents_have_are_refused(shape: tuple[int, ...], count: int, tmp_path: Path) -> None:
    path = tmp_path / "latents.npy"
    np.save(path, np.zeros(shape, np.float32))
    with pytest.raises(ArtefactError, match=rf"it must be \({count}, channels, height, width\)"):
        load_latents(path, count)


def test_what_is_no_array_is_refused() -> None:
    with pytest.raises(UsageError, match="latents are list"):
        check_latents([[0.0]], 1, SHAPE)  # type: ignore[arg-type]


def test_checked_latents_do_not_alias_the_callers_array() -> None:
    given = unit_noise([1], SHAPE)
    check_latents(given, 1, SHAPE)[...] = 0
    np.testing.assert_array_equal(given, unit_noise([1], SHAPE))


def test_missing_and_oversized_files_are_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is not a file"):
        load_latents(tmp_path / "absent.npy", 1)
    with pytest.raises(ArtefactError, match="is not a file"):
        load_latents(tmp_path, 1)
    huge = tmp_path / "huge.npy"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ArtefactError, match="larger than latents"):
        load_latents(huge, 1)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "latents.npy"


@settings(deadline=None, max_examples=100, derandomize=True)
@given(data=st.data())
def test_damaged_files_never_raise_anything_else(data: st.DataObject, damaged: Path) -> None:
    content = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    damaged.write_bytes(bytes(content))
    try:
        loaded = load_latents(damaged, 1, SHAPE)
    except ArtefactError:
        return
    assert loaded.shape == (1, *SHAPE)
