"""The planted faults: each is planted where stated and found, and the right component is blamed."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineSet
from sdrt.artefacts.manifest import ComponentName
from sdrt.artefacts.store import Store
from sdrt.checkpoint import open_checkpoint
from sdrt.compare import faults
from sdrt.compare.faults import FAULTS, plant, run_planted_faults
from sdrt.compare.inputs import Inputs
from sdrt.compare.reference import Reference
from sdrt.compare.schema import FaultResult
from sdrt.compare.tolerances import Tolerances, load
from sdrt.engines import build as engines_build
from sdrt.engines.request import BuildRequest
from sdrt.errors import BundleError, NumericError, ResourceError, UsageError
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.source import Source
from sdrt.progress import silent
from sdrt.runtime.request import make_request


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_only_what_it_names(name: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    before = tiny_bundle.manifest.files
    fault = FAULTS[name]
    faulty = plant(tiny_bundle, fault, tmp_path / "bundle")
    changed = {file.split("/")[0] for file, record in faulty.manifest.files.items() if record != before[file]}
    folder = {"denoise_step": "unet", "vae_decoder": "vae_decoder"}.get(fault.component, fault.component)
    assert changed == (set() if fault.plant is None else {folder})
    assert faulty.manifest.files.keys() == before.keys()
    # The copy opens as sound, and its original bundle is unchanged.
    Bundle.open(faulty.path, verify=True)
    assert Bundle.open(tiny_bundle.path, verify=True).digest == tiny_bundle.digest
    assert faulty.digest != tiny_bundle.digest


def test_a_fault_is_planted_in_a_copy_of_a_read_only_bundle(tiny_bundle: Bundle, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    shutil.copytree(tiny_bundle.path, sealed)
    for path in sealed.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    faulty = plant(Bundle.open(sealed), FAULTS["convolution-scaled"], tmp_path / "bundle")
    assert len(dict(changed_weights(tiny_bundle, faulty, "unet"))) == 1
    # Root, as in a container, can write read-only files; so this checks the modes.
    assert all(path.stat().st_mode & stat.S_IWUSR for path in faulty.path.rglob("*"))


def test_a_full_disk_is_said(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(ResourceError, match="bundle: the disk is full"):
        plant(tiny_bundle, FAULTS["convolution-scaled"], tmp_path / "bundle")


def test_one_block_of_one_weight_is_transposed(tiny_bundle: Bundle, tmp_path: Path) -> None:
    faulty = plant(tiny_bundle, FAULTS["attention-head-transposed"], tmp_path / "bundle")
    changes = dict(changed_weights(tiny_bundle, faulty, "unet"))
    assert len(changes) == 1
    ((before, after),) = changes.values()
    differs = np.argwhere(before != after)
    size = differs.max() + 1
    np.testing.assert_array_equal(after[:size, :size], before[:size, :size].T)
    assert size < before.shape[1]


def test_one_convolution_is_scaled(tiny_bundle: Bundle, tmp_path: Path) -> None:
    faulty = plant(tiny_bundle, FAULTS["convolution-scaled"], tmp_path / "bundle")
    ((before, after),) = dict(changed_weights(tiny_bundle, faulty, "unet")).values()
    np.testing.assert_allclose(after, before * 1.01, rtol=1e-6)
    assert before.ndim == 4


def changed_weights(
    sound: Bundle, faulty: Bundle, component: ComponentName
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    graphs = [onnx.load(bundle.graph(component)).graph.initializer for bundle in (sound, faulty)]
    for first, second in zip(*graphs, strict=True):
        before, after = onnx.numpy_helper.to_array(first), onnx.numpy_helper.to_array(second)
        if not np.array_equal(before, after):
            yield first.name, (before, after)


def test_a_graph_with_nothing_to_plant_a_fault_in(tiny_bundle: Bundle, tmp_path: Path) -> None:
    fault = faults.Fault("n", "text_encoder", FAULTS["groupnorm-epsilon"].plant)
    with pytest.raises(BundleError, match="holds no GroupNormalization"):
        plant(tiny_bundle, fault, tmp_path / "bundle")


def test_an_unknown_fault_is_refused(tiny_reference: Reference, tiny_inputs: Inputs, tiny_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no planted fault 'gremlin'"):
        run_planted_faults(tiny_reference, tiny_bundle, tiny_inputs, load(), names=["gremlin"])


@pytest.fixture
def only_text(tiny_bundle: Bundle) -> Bundle:
    """Open the tiny bundle with its text encoder alone, which is fast."""
    parts = {name: part for name, part in tiny_bundle.manifest.components.items() if name == "text_encoder"}
    return Bundle(tiny_bundle.path, tiny_bundle.manifest.model_copy(update={"components": parts}), tiny_bundle.digest)


def test_a_fault_is_found_and_blamed(tiny_reference: Reference, tiny_inputs: Inputs, only_text: Bundle) -> None:
    name = "weight-of-another-checkpoint"
    found = run_planted_faults(tiny_reference, only_text, tiny_inputs, load(), names=[name])
    assert found == (
        FaultResult(name=name, found=True, expected_component="text_encoder", blamed_component="text_encoder"),
    )


def test_tolerances_that_pass_everything_find_nothing(
    tiny_reference: Reference, tiny_inputs: Inputs, only_text: Bundle
) -> None:
    name = "weight-of-another-checkpoint"
    loose = {key: row.model_copy(update={"relative_l2": 1e9, "peak": 1e9}) for key, row in load().table.items()}
    (found,) = run_planted_faults(tiny_reference, only_text, tiny_inputs, Tolerances(loose), names=[name])
    assert (found.found, found.blamed_component) == (False, None)


def test_a_bundle_that_fails_as_it_is_says_nothing_of_faults(
    tiny_reference: Reference, tiny_inputs: Inputs, only_text: Bundle
) -> None:
    tight = {key: row.model_copy(update={"relative_l2": 0.0}) for key, row in load().table.items()}
    with pytest.raises(NumericError, match="text_encoder is failed before a fault is planted"):
        run_planted_faults(
            tiny_reference, only_text, tiny_inputs, Tolerances(tight), names=["weight-of-another-checkpoint"]
        )


@pytest.mark.long
@pytest.mark.parametrize("checkpoint", ["tiny", "demo"])
def test_every_fault_is_found_in_engines_and_blamed_on_its_component(
    checkpoint: str, tiny_path: Path, store: Store, tmp_path: Path
) -> None:
    source = str(tiny_path) if checkpoint == "tiny" else checkpoint
    reference = Reference(open_checkpoint(source))
    prompts = ["a large green star on a purple background", "a red circle above a blue square"]
    track = reference.denoise(make_request(prompts, seed=0, num_inference_steps=25))
    bundle = open_bundle(Source(checkpoint=source), store)
    store = Store(tmp_path / "store")

    def make(bundle: Bundle) -> EngineSet:
        request = BuildRequest("onnxruntime", "fp32", components=tuple(bundle.manifest.components))
        return engines_build.build(bundle, request, store, silent)

    found = run_planted_faults(reference, bundle, Inputs(reference, track), load(), make=make)
    assert len(found) == len(FAULTS)
    assert {each.name: each.blamed_component for each in found} == {
        name: fault.component for name, fault in FAULTS.items()
    }
