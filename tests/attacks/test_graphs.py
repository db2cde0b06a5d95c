"""Fault-matrix rows 9 to 19: ONNX graphs that are damaged, point outside their folder, or differ from their manifest.

Graphs without a bundle are passed to `validate_graph`; graphs in a bundle are opened by `Bundle.graph`, as in
`sdrt build`.
"""

from __future__ import annotations

import ast
import os
import random
import tracemalloc
from functools import partial
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

import sdrt
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import MANIFEST, Manifest, file_records, seal
from sdrt.files import sha256_file
from sdrt.graphs.structure import check_structure
from sdrt.graphs.validate import validate_graph
from tests.attacks.material import Canary, refusal
from tests.command_line import CommandLine
from tests.graphs.models import EXPECTED, Change, external, far, write
from tests.models.tiny_bundle import tiny_bundle

#: Modules that pass a file to a library that reads graphs, and why that file has been validated.
READERS = {
    "bench/peers/genai_model.py": "bench/plan.py has the bundle validated before peers are prepared",
    "bench/peers/plain_onnxruntime.py": "bench/plan.py has the bundle validated before peers are prepared",
    "compare/bisect.py": "the path comes from Bundle.graph",
    "compare/faults.py": "a copy of what Bundle.graph gave, changed here",
    "engines/builders/onnxruntime.py": "the job's graph comes from Bundle.graph",
    "engines/builders/onnxruntime_gpu.py": "the job's graph comes from Bundle.graph",
    "engines/builders/openvino.py": "the job's graph comes from Bundle.graph",
    "engines/trt/network.py": "the job's graph comes from Bundle.graph",
    "export/check.py": "written by this process a moment ago",
    "export/cpu_session.py": "export's callers pass what Bundle.graph gave, or what they wrote themselves",
    "export/deepcache.py": "a copy of what Bundle.graph gave, cut here",
    "export/denoise_step.py": "written by this process a moment ago",
    "export/onnx_export.py": "written by this process a moment ago",
    "export/calibration.py": "the path comes from Bundle.graph",
    "export/sensitivity.py": "the path comes from Bundle.graph",
    "engines/builders/openvino_fp32.py": "an IR of its own",
    "export/quantise.py": "the path comes from Bundle.graph, by export/quantised_bundle.py",
    "export/quantised_bundle.py": "the path comes from Bundle.graph",
    "graphs/child.py": "this is the child",
    "inspect/graph.py": "the path comes from Bundle.graph",
    "inspect/measure.py": "the path comes from Bundle.graph",
    "plots/marked_graph.py": "the path comes from Bundle.graph",
    "libraries/onnxruntime.py": "an engine, opened by its seal",
}
CALLS = {"load_model", "read_model", "InferenceSession", "parse_from_file", "check_model", "load_from_string"}


def resealed(bundle: Bundle, path: str, change: Change) -> Path:
    """Reopen the bundle with one graph changed and sealed again, as an attacker could."""
    model = onnx.load(bundle.path / path, load_external_data=False)
    change(model)
    (bundle.path / path).write_bytes(model.SerializeToString())
    return reseal(bundle.path, bundle.manifest)


def reseal(folder: Path, manifest: Manifest) -> Path:
    (folder / MANIFEST).unlink(missing_ok=True)
    seal(folder, manifest.model_copy(update={"files": file_records(folder)}))
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Return a bundle to break."""
    return tiny_bundle(tmp_path / "bundle", components=("unet", "vae_decoder"))


def test_negative_control(bundle: Bundle, tmp_path: Path) -> None:
    validate_graph(write(tmp_path / "graph"))
    assert Bundle.open(bundle.path).graph("unet").is_file()


def test_every_reader_of_graphs_is_known() -> None:
    """Check that no new code opens graphs except by `Bundle.graph`; an exception must be listed here."""
    folder = Path(sdrt.__file__).parent
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = node.func.attr
            if name in CALLS or (name == "load" and ast.unparse(node.func.value) == "onnx"):
                found.add(path.relative_to(folder).as_posix())
    assert found <= READERS.keys()
    assert {"compare/bisect.py", "engines/builders/openvino.py", "graphs/child.py"} <= found


@pytest.mark.parametrize("tenth", range(10))
def test_row_09_a_truncated_graph(tenth: int, bundle: Bundle, tmp_path: Path) -> None:
    path = write(tmp_path / "alone")
    os.truncate(path, path.stat().st_size * tenth // 10)
    refusal(partial(validate_graph, path), 3, str(path))
    inside = bundle.path / "unet" / "model.onnx"
    os.truncate(inside, inside.stat().st_size * tenth // 10)
    refusal(partial(Bundle.open, bundle.path), 8, str(inside))


@pytest.mark.parametrize("seed", range(6))
def test_row_10_random_bytes(seed: int, tmp_path: Path) -> None:
    # Half of them follow a sound beginning, so that some reach inner readers. tests/fuzz fuzzes more.
    path = write(tmp_path)
    source = random.Random(seed)
    head = path.read_bytes()[: source.randrange(200)] if seed % 2 else b""
    path.write_bytes(head + source.randbytes(source.randrange(1, 5000)))
    refusal(partial(validate_graph, path), 3, str(path))


@pytest.mark.parametrize(
    "location", ["../canary", "a/../../canary", "/etc/passwd", "..", ".", "", "\\..\\canary", "x\0y", "x" * 5000]
)
def test_row_11_weights_outside_the_graphs_folder(location: str, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    named = str(canary.path) if location.startswith("/") else location
    path = write(tmp_path / "graph", external(location=named))
    refusal(partial(check_structure, path), 8)
    if location.startswith((".", "/")):
        refusal(partial(validate_graph, path), 8, "is not a path inside")
    assert not canary.watched


def test_row_11_the_canary_sings(tmp_path: Path) -> None:
    canary = Canary(tmp_path / "canary")
    reader = os.open(canary.path, os.O_RDONLY | os.O_NONBLOCK)
    assert canary.watched
    os.close(reader)


def test_row_11_in_a_bundle_whoever_asks_is_refused(sdrt: CommandLine, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "whole")
    canary = Canary(tmp_path / "canary")

    def leave(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../../canary"

    folder = resealed(bundle, "unet/model.onnx", leave)
    store = ("--store", tmp_path / "store")
    for words in (
        ("build", folder, "--backend", "onnxruntime", *store),
        ("build", folder, "--backend", "openvino", *store),
        ("denoise", "--prompt", "a", "--bundle", folder, "--backend", "onnxruntime", *store),
        ("inspect", folder),
    ):
        ended = sdrt(*words)
        assert ended.code == 8, ended.err
        assert "is not a path inside" in ended.complaint
    assert not canary.watched
    assert not list((tmp_path / "store").glob("engines/*/*"))
    assert not list((tmp_path / "store").glob("staging/*"))


@pytest.mark.parametrize("kind", ["out", "inside", "parent", "hard"])
def test_row_12_weights_behind_links(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / "graph", external(location="sub/data" if kind == "parent" else "model.onnx.data"))
    weights, aside = path.with_name("model.onnx.data"), tmp_path / "aside"
    if kind == "parent":
        (tmp_path / "elsewhere").mkdir()
        weights.rename(tmp_path / "elsewhere" / "data")
        (path.parent / "sub").symlink_to(tmp_path / "elsewhere")
    elif kind == "hard":
        os.link(weights, aside)
    else:
        target = path.with_name("data") if kind == "inside" else aside
        weights.rename(target)
        weights.symlink_to(target)
    error = refusal(partial(validate_graph, path), 8, "link")
    assert "copy the file" in error.hint


@pytest.mark.parametrize(
    "values",
    [
        {"offset": "-1"},
        {"length": "-64"},
        {"offset": "one"},
        {"length": "64.0"},
        {"length": " 64"},
        {"offset": "٣"},
        {"offset": "1"},
        {"offset": "9" * 5000},
        {"length": str(1 << 50)},
        {"offset": str(1 << 63), "length": "64"},
        {"length": None},
        {"location": None},
    ],
    ids=str,
)
def test_row_13_offsets_and_lengths_that_are_none(values: dict[str, str | None], tmp_path: Path) -> None:
    path = write(tmp_path, external(**values))
    tracemalloc.start()
    refusal(partial(check_structure, path), 3, "'far'")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 50 << 20


def test_row_13_a_petabyte_that_the_shape_agrees_with(tmp_path: Path) -> None:
    def enormous(model: onnx.ModelProto) -> None:
        external(length=str(1 << 50))(model)
        far(model).dims[:] = [1 << 24, 1 << 24]

    refusal(partial(validate_graph, write(tmp_path, enormous)), 3, "of a file of 64")


def test_row_14_weights_missing_or_short_of_one_byte(tmp_path: Path) -> None:
    path = write(tmp_path)
    weights = path.with_name("model.onnx.data")
    os.truncate(weights, 63)
    refusal(partial(validate_graph, path), 3, "bytes 0 to 64 of a file of 63")
    weights.unlink()
    refusal(partial(validate_graph, path), 3, "model.onnx.data is missing")


@pytest.mark.parametrize("key", ["__class__", "basepath", "Location", ""])
def test_row_15_keys_that_external_data_does_not_have(key: str, tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        far(model).external_data.add(key=key, value="x")

    refusal(partial(check_structure, write(tmp_path, unknown)), 3, "describes the place of tensor 'far' by", key)


def test_row_15_a_key_given_twice(tmp_path: Path) -> None:
    def twice(model: onnx.ModelProto) -> None:
        far(model).external_data.add(key="location", value="other")

    refusal(partial(validate_graph, write(tmp_path, twice)), 3, "describes the place")


def test_row_16_weights_inside_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    # sdrt's exports store weights beside the graph whatever their size, so no size is refused in advance.
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate((2 << 30) + 1)  # sparse: takes no room
    error = refusal(partial(validate_graph, path), 3, "is larger than 64 MiB")
    assert "beside the graph" in error.hint
    os.truncate(bundle.path / "unet" / "model.onnx", 65 << 20)
    error = refusal(
        partial(Bundle.open, reseal(bundle.path, bundle.manifest)), 3, "unet/model.onnx is larger than 64 MiB"
    )
    assert "beside" in error.hint


def _functions(depth: int, *, cyclic: bool) -> Change:
    """Build local functions that each call the next; if cyclic, the last calls the first."""

    def change(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("local", 1)]
        model.opset_import.append(helper.make_opsetid("local", 1))
        for number in range(depth):
            last = number == depth - 1
            called = helper.make_node("f0" if cyclic else "Identity", ["x"], ["y"], domain="local" if cyclic else "")
            node = called if last else helper.make_node(f"f{number + 1}", ["x"], ["y"], domain="local")
            model.functions.append(helper.make_function("local", f"f{number}", ["x"], ["y"], [node], opsets))
        model.graph.node[0].CopyFrom(helper.make_node("f0", ["sample"], ["hidden"], domain="local"))

    return change


def _still(model: onnx.ModelProto) -> None:
    """Build a convolution with stride 0."""
    node = helper.make_node("Conv", ["sample", "near"], ["hidden"], strides=[0, 0])
    model.graph.node[0].CopyFrom(node)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_functions(2, cyclic=True), "has 2 functions"),
        (_functions(3000, cyclic=False), "has 3000 functions"),
        (_still, "has 0 in attribute 'strides'"),
        (lambda m: m.graph.node.reverse(), "before it is computed"),
    ],
    ids=["cyclic functions", "deep functions", "zero stride", "circle"],
)
def test_row_17_graphs_that_hang_or_crash_parsers(change: Change, reason: str, tmp_path: Path) -> None:
    refusal(partial(validate_graph, write(tmp_path, change)), 3, reason)


def test_row_17_what_only_onnx_finds_comes_back_too(tmp_path: Path) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.graph.node[0].op_type = "MatMulInteger16Bit"

    path = write(tmp_path, unknown)
    check_structure(path)
    refusal(partial(validate_graph, path), 3, "refused by ONNX's checker", "MatMulInteger16Bit")


def test_row_18_operators_and_opsets_that_are_not_ours(tmp_path: Path) -> None:
    def foreign(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.evil", 1))
        for node, name in zip(model.graph.node, ("Shell", "Reader"), strict=True):
            node.domain, node.op_type = "com.evil", name

    refusal(partial(validate_graph, write(tmp_path / "a", foreign)), 3, "'com.evil.Reader', 'com.evil.Shell'")
    future: Change = lambda model: setattr(model.opset_import[0], "version", 99)  # noqa: E731
    refusal(partial(validate_graph, write(tmp_path / "b", future)), 3, "opset 99; expected 20 to 24")
    refusal(partial(check_structure, write(tmp_path / "c", future), EXPECTED), 3, "opset 99; expected 23")


def _retyped(name: str, dtype: int, shape: tuple[int | str, ...]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        for index, value in enumerate(model.graph.input):
            if value.name == name:
                model.graph.input[index].CopyFrom(helper.make_tensor_value_info(name, dtype, shape))

    return change


@pytest.mark.parametrize(
    ("change", "table"),
    [
        (_retyped("timestep", TensorProto.FLOAT16, ("batch",)), "'timestep': float16 [batch] not float32 [batch]"),
        (
            _retyped("sample", TensorProto.FLOAT, ("batch", 8, 8, 4)),
            "'sample': float32 [batch,8,8,4] not float32 [batch,4,8,8]",
        ),
        (_retyped("sample", TensorProto.FLOAT, ("batch", 4, 8)), "'sample': float32 [batch,4,8] not"),
        (lambda m: m.graph.input.add(name="extra"), "'extra': no plain tensor [] not present"),
    ],
    ids=["fp16 timestep", "NHWC", "rank", "extra"],
)
def test_row_19_inputs_that_differ_from_the_spec(change: Change, table: str, bundle: Bundle) -> None:
    opened = Bundle.open(resealed(bundle, "unet/model.onnx", change))
    refusal(partial(opened.graph, "unet"), 3, "unet/model.onnx", table)


def test_row_19_a_manifest_that_agrees_with_the_wrong_graph(bundle: Bundle) -> None:
    unet = bundle.manifest.components["unet"]
    wrong = tuple(
        spec.model_copy(update={"shape": ("batch", 8, 8, 4)}) if spec.name == "sample" else spec for spec in unet.inputs
    )
    components = {**bundle.manifest.components, "unet": unet.model_copy(update={"inputs": wrong})}
    lying = bundle.manifest.model_copy(update={"components": components})
    reseal(bundle.path, lying)
    opened = Bundle.open(bundle.path)
    assert opened.digest == sha256_file(bundle.path / MANIFEST)
    refusal(partial(opened.graph, "vae_decoder"), 3, "inputs of unet differ from its contract", "[batch,8,8,4] not")
