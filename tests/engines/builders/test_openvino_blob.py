"""OpenVINO's blobs: half as large where the products compute in bf16, and in memory only while they are read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName, Precision
from sdrt.engines.builders import builder
from sdrt.engines.builders import openvino as openvino_builder
from sdrt.libraries.openvino import core, cpu_config
from sdrt.machine.cpu import supports_bf16
from sdrt.runtime.backends.openvino import MappedBlob, OpenVinoEngine
from tests.helpers.jobs import job
from tests.models.tiny_bundle import feeds

MIB = 2**20
needs_bf16 = pytest.mark.skipif(not supports_bf16(), reason="the processor does not compute in bf16")


def built(
    bundle: Bundle, component: ComponentName, folder: Path, precision: Precision = "bf16"
) -> tuple[npt.NDArray[np.float32], int]:
    """Return an engine's output for two pictures, and its blob's bytes."""
    folder.mkdir()
    spec = builder("openvino").build(job(bundle, component, folder, backend="openvino", precision=precision))
    with OpenVinoEngine(component, spec, folder, 1) as engine:
        [output] = engine.run(**feeds(component, 2)).values()
    return output, (folder / spec.file).stat().st_size


@needs_bf16
@pytest.mark.parametrize("component", ["unet", "vae_encoder"])
def test_weights_held_in_bf16_change_no_bit(
    hand_made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: ComponentName
) -> None:
    held, _ = built(hand_made, component, tmp_path / "held")
    monkeypatch.setattr(openvino_builder, "BELOW_HALF", 0)
    cut, _ = built(hand_made, component, tmp_path / "cut")
    monkeypatch.setattr(openvino_builder, "_round_weights", lambda model: None)
    whole, _ = built(hand_made, component, tmp_path / "whole")
    np.testing.assert_array_equal(held, whole)
    # cut off, not rounded to the nearest: the comparison sees it
    assert not np.array_equal(cut, whole)


@needs_bf16
def test_weights_take_half_the_room(tmp_path: Path) -> None:
    kernel = np.ones((64, 64, 3, 3), np.float32)
    shape = [1, 64, 8, 8]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("sample", "out_sample")]
    node = helper.make_node("Conv", ["sample", "kernel"], ["out_sample"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "kernel")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), tmp_path / "g.onnx")
    sizes = []
    for held in (False, True):
        model = core().read_model(tmp_path / "g.onnx")
        if held:
            openvino_builder._round_weights(model)
        compiled = core().compile_model(model, "CPU", cpu_config("bf16", 1))
        sizes.append(len(compiled.export_model().getvalue()))
    # a few kB of XML come on top
    assert sizes[0] > kernel.nbytes
    assert kernel.nbytes / 2 < sizes[1] < 0.6 * kernel.nbytes


def test_fp32_engines_hold_fp32(hand_made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in ("_round_weights", "keep_timestep", "keep_last_layers"):
        monkeypatch.setattr(openvino_builder, change, lambda model: pytest.fail("fp32 needs none"))
    output, _ = built(hand_made, "unet", tmp_path / "fp32", "fp32")
    assert output.shape[0] == 2


def resident(of: str) -> int:
    """Return bytes of the process's memory of one kind; RssFile is mapped from files."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(of)]
    return 1024 * int(line.split()[1])


def test_a_blob_is_in_memory_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes([1]) * 64 * MIB)
    blob = MappedBlob(tmp_path / "blob")
    before = resident("RssFile")
    assert int(blob.array[:: 2**12].sum(dtype=np.int64)) == 64 * MIB / 2**12
    # the planted fault: no pages are released
    assert resident("RssFile") - before > 48 * MIB
    with blob.given_back():
        assert int(blob.array[:: 2**12].sum(dtype=np.int64)) == 64 * MIB / 2**12
    assert resident("RssFile") - before < 16 * MIB
    assert int(blob.array[-1]) == 1


def test_pages_are_given_back_for_new_shapes_alone(
    hand_made: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[MappedBlob] = []
    given_back = MappedBlob.given_back

    def counted(blob: MappedBlob) -> AbstractContextManager[None]:
        times.append(blob)
        return given_back(blob)

    monkeypatch.setattr(MappedBlob, "given_back", counted)
    spec = builder("openvino").build(job(hand_made, "unet", tmp_path, backend="openvino"))
    with OpenVinoEngine("unet", spec, tmp_path, 1) as engine:
        assert len(times) == 1
        counts = []
        for batch in (1, 1, 2, 1, 2):
            engine.run(**feeds("unet", batch))
            counts.append(len(times))
        assert counts == [2, 2, 3, 3, 3]
        # The memory is bounded.
        monkeypatch.setattr("sdrt.runtime.backends.openvino.REMEMBERED_SHAPES", 2)
        for batch in (3, 3, 4, 5):
            engine.run(**feeds("unet", batch))
            assert len(engine._copied_for) <= 2
