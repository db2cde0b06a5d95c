"""Tensors for Polygraphy: what is passed to it; only files saved by sdrt are ever replaced or removed."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.compare.inputs import Inputs
from sdrt.compare.reference import Reference
from sdrt.compare.schema import ToleranceRecord
from sdrt.compare.tensors import arguments, check_replaceable, remove_tensors, save_tensors, snr_db
from sdrt.compare.tolerances import Tolerances
from sdrt.errors import UsageError


def test_a_relative_l2_is_a_signal_to_noise_ratio() -> None:
    reference = np.array([3.0, 4.0])
    error = np.array([0.003, -0.004])
    power = float(np.mean(reference**2) / np.mean(error**2))
    assert snr_db(float(np.linalg.norm(error) / np.linalg.norm(reference))) == pytest.approx(10 * math.log10(power))
    assert snr_db(1e-3) < snr_db(1e-4)


def test_a_limit_of_zero_is_an_infinite_ratio() -> None:
    # Polygraphy reads "inf" as a number, and writes inf for equal tensors.
    assert snr_db(0.0) == math.inf
    exact = ToleranceRecord(relative_l2=0.0, reason="for this test")
    assert arguments(Path("unet"), exact)[-2:] == ("--snr-threshold", "inf")
    assert "--snr-threshold" not in arguments(Path("unet"), None)
    assert "--snr-threshold" not in arguments(Path("unet"), ToleranceRecord(peak=0.1, reason="for this test"))


def saved(folder: Path) -> Path:
    """Save tensors as an earlier run did."""
    for name in ("unet", "vae_decoder"):
        (folder / name).mkdir(parents=True)
        for file in ("inputs.json", "outputs.json"):
            (folder / name / file).write_text("{}")
    return folder


def test_saved_tensors_are_replaced_and_removed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tensors")
    check_replaceable(folder)
    check_replaceable(tmp_path / "nothing")
    remove_tensors(tmp_path / "nothing")
    remove_tensors(folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mine.npy", "unet/mine.npy", "mine/inputs.json", "unet/inputs.json/mine"])
def test_what_was_not_saved_here_is_neither_replaced_nor_removed(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "tensors")
    mine = folder / name
    if mine.parent.is_file():
        mine.parent.unlink()
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("weeks of work")
    with pytest.raises(UsageError, match=r"--save-tensors replaces .*tensors, and .* was not saved by it"):
        check_replaceable(folder)
    remove_tensors(folder)
    assert mine.read_text() == "weeks of work"


def test_a_file_and_a_link_are_not_replaced(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("mine")
    link.symlink_to(saved(tmp_path / "elsewhere"))
    for place in (file, link):
        with pytest.raises(UsageError, match=f"and {place} was not saved by it"):
            check_replaceable(place)
        remove_tensors(place)
    assert file.exists()
    assert link.exists()


def test_the_commands_survive_a_shell(
    tiny_bundle: Bundle, tiny_reference: Reference, tiny_inputs: Inputs, tmp_path: Path
) -> None:
    text = {"text_encoder": tiny_bundle.manifest.components["text_encoder"]}
    bundle = Bundle(tiny_bundle.path, tiny_bundle.manifest.model_copy(update={"components": text}), tiny_bundle.digest)
    folder = tmp_path / "a report; $(of) mine" / "tensors"
    (line,) = save_tensors(folder, tiny_reference, bundle, tiny_inputs, Tolerances({}))
    words = shlex.split(line)
    files = [Path(word) for word in words if word.endswith((".json", ".onnx"))]
    inside = folder / "text_encoder"
    assert files == [tiny_bundle.graph("text_encoder"), inside / "inputs.json", inside / "outputs.json"]
    assert all(file.is_file() for file in files)
    # A second run replaces the first's.
    assert save_tensors(folder, tiny_reference, bundle, tiny_inputs, Tolerances({})) == (line,)
