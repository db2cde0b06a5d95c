"""Planted faults: the comparison must fail for each, and blame the component that it was planted in.

Each is a mistake that exporters, converters or people have made. It is planted in a copy of the bundle, whose manifest
is sealed again, so that every later check takes the copy for a sound bundle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName, Manifest, file_records, seal
from sdrt.compare.components import blamed, compare_components
from sdrt.compare.schema import FaultResult
from sdrt.compare.tolerances import Tolerances
from sdrt.errors import BundleError, NumericError, UsageError
from sdrt.files import disk_errors, temporary_folder
from sdrt.graphs.values import module_path
from sdrt.progress import Progress, silent

if TYPE_CHECKING:
    import onnx

    from sdrt.artefacts.engine_set import EngineSet
    from sdrt.compare.inputs import Inputs
    from sdrt.compare.reference import Reference

Array = npt.NDArray[Any]
#: Builds the subject of the comparison from a bundle.
Make = Callable[[Bundle], "EngineSet | Bundle"]
#: Edits a model loaded without its external data; the path is the model's file.
Edit = Callable[["onnx.ModelProto", Path], None]


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    Attributes:
        name: Name in the results and in `run_planted_faults`.
        component: Component that the comparison must blame.
        plant: Function that edits the component's graph, and its weights beside it; None edits the manifest only.
        scaling_factor: Value written to the manifest instead of the checkpoint's; None keeps the checkpoint's.
    """

    name: str
    component: ComponentName
    plant: Edit | None = None
    scaling_factor: float | None = None


def run_planted_faults(
    reference: Reference,
    bundle: Bundle,
    inputs: Inputs,
    tolerances: Tolerances,
    progress: Progress = silent,
    *,
    names: Sequence[str] | None = None,
    make: Make | None = None,
) -> tuple[FaultResult, ...]:
    """Plant the faults, one after the other, and check that the comparison finds each.

    Args:
        reference: The checkpoint in PyTorch that the bundle came from.
        bundle: A sound bundle in fp32.
        inputs: Input cases of the components.
        tolerances: Table of limits.
        progress: Progress callback.
        names: Names of the faults; None is all.
        make: Function that builds the subject from a bundle; None compares the bundle's graphs.

    Returns:
        One result per fault, in the order of ``names``.

    Raises:
        UsageError: A name is not one of `FAULTS`.
        NumericError: The bundle does not pass before a fault is planted, so finding one would prove nothing.
    """
    for name in names or ():
        if name not in FAULTS:
            raise UsageError(f"there is no planted fault {name!r}", hint=f"choose among {', '.join(FAULTS)}")
    chosen = [FAULTS[name] for name in names or FAULTS]
    results = []
    with progress.stage("planted faults", len(chosen) + 1) as advance:
        _check_sound(reference, bundle, inputs, tolerances, make, {fault.component for fault in chosen})
        advance(1)
        for fault in chosen:
            with temporary_folder() as folder:
                faulty = plant(bundle, fault, folder / "bundle")
                compared = compare_components(
                    reference, make(faulty) if make else faulty, inputs, tolerances, components=_changed(bundle, faulty)
                )
            blame = blamed(compared)
            results.append(
                FaultResult(
                    name=fault.name,
                    found=blame is not None,
                    expected_component=fault.component,
                    blamed_component=blame,
                )
            )
            advance(1)
    return tuple(results)


def _check_sound(
    reference: Reference,
    bundle: Bundle,
    inputs: Inputs,
    tolerances: Tolerances,
    make: Make | None,
    components: Iterable[ComponentName],
) -> None:
    """Raise NumericError unless every component passes before a fault is planted."""
    held = bundle.manifest.components
    for name in components:
        bundle.graph(name)
    compared = compare_components(
        reference, make(bundle) if make else bundle, inputs, tolerances, components=tuple(held)
    )
    for result in compared:
        if result.outcome != "passed":
            hint = "--self-test needs a bundle that passes; run sdrt compare without it to see what fails"
            said = f"{result.component} is {result.outcome} before a fault is planted: {result.reason}"
            raise NumericError(said, hint=hint)


def plant(bundle: Bundle, fault: Fault, folder: Path) -> Bundle:
    """Copy a bundle, plant a fault in the copy, and seal it as if it were sound.

    Args:
        bundle: The bundle, which is not changed and may be read-only.
        fault: The fault to plant.
        folder: Folder of the copy; must not exist.

    Returns:
        The faulty copy, opened.

    Raises:
        BundleError: The graph has no node to plant the fault in.
        ResourceError: The folder cannot be written.
    """
    with disk_errors(folder):
        # Contents only, without permissions: the copy of a read-only bundle must be writable.
        for name in bundle.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, folder / name)
        seal(folder, _planted(bundle, fault, folder))
    return Bundle.open(folder)


def _planted(bundle: Bundle, fault: Fault, folder: Path) -> Manifest:
    """Plant a fault in a copy of the bundle's files and return the manifest of the copy."""
    import onnx

    from sdrt.export.denoise_step import write_denoise_step

    manifest = bundle.manifest
    if fault.plant is not None:
        path = folder / bundle.component(fault.component).graph
        model = onnx.load(str(path), load_external_data=False)
        fault.plant(model, path)
        path.write_bytes(model.SerializeToString(deterministic=True))
        if fault.component == "unet" and "denoise_step" in manifest.components:
            # As an export would, compose the step around the faulty UNet.
            config = json.loads((folder / "scheduler" / "scheduler_config.json").read_bytes())
            write_denoise_step(path, config.get("prediction_type", "epsilon"))
    if fault.scaling_factor is not None:
        model_record = manifest.model.model_copy(update={"scaling_factor": fault.scaling_factor})
        manifest = manifest.model_copy(update={"model": model_record})
    return manifest.model_copy(update={"files": file_records(folder)})


def _changed(sound: Bundle, faulty: Bundle) -> tuple[ComponentName, ...]:
    """Return the components with a file that differs, or all of them if the model record differs."""
    if sound.manifest.model != faulty.manifest.model:
        return tuple(faulty.manifest.components)
    return tuple(
        name
        for name, part in faulty.manifest.components.items()
        if any(sound.manifest.files[file] != faulty.manifest.files[file] for file in (part.graph, part.weights) if file)
    )


def _groupnorm_epsilon(model: onnx.ModelProto, _path: Path) -> None:
    """Multiply every group normalisation's epsilon by 100."""
    nodes = [node for node in model.graph.node if node.op_type == "GroupNormalization"]
    _found(nodes, "GroupNormalization")
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 100


def _convolution_scaled(model: onnx.ModelProto, path: Path) -> None:
    """Multiply one convolution's weight by 1.01: the second of a residual block, which no normalisation undoes."""
    found = [node for node in model.graph.node if node.op_type == "Conv" and module_path(node).endswith(".conv2")]
    node = _found(found, "second convolution of a residual block")
    _edit(model, path, node.input[1], lambda weight: weight * weight.dtype.type(1.01))


def _timestep(*operators: tuple[str, dict[str, Any]]) -> Edit:
    """Return an edit that inserts operators between the timestep and its consumers."""

    def edit(model: onnx.ModelProto, _path: Path) -> None:
        import onnx

        _replace_input(model, "timestep", f"fault.{len(operators)}")
        nodes = [
            onnx.helper.make_node(
                operator,
                [f"fault.{index}" if index else "timestep"],
                [f"fault.{index + 1}"],
                name=f"fault.{operator}.{index}",
                **attributes,
            )
            for index, (operator, attributes) in enumerate(operators)
        ]
        _put_first(model, nodes)

    return edit


def _halves_swapped(model: onnx.ModelProto, _path: Path) -> None:
    """Swap the conditional and the unconditional half."""
    halves = {"step.first": "step.second", "step.second": "step.first"}
    nodes = [node for node in model.graph.node if node.op_type == "Gather" and node.input[1] in halves]
    _found(nodes, "pick of a half of guidance")
    for node in nodes:
        node.input[1] = halves[node.input[1]]


def _order_3(model: onnx.ModelProto, _path: Path) -> None:
    """Multiply the coefficient of the oldest derivative by 0."""
    import onnx

    _replace_input(model, "lms_coefficients", "fault.coefficients")
    mask = onnx.numpy_helper.from_array(np.array([1, 1, 1, 0], np.float32), "fault.mask")
    model.graph.initializer.append(mask)
    node = onnx.helper.make_node("Mul", ["lms_coefficients", "fault.mask"], ["fault.coefficients"], name="fault.Mul")
    _put_first(model, [node])


def _head_transposed(model: onnx.ModelProto, path: Path) -> None:
    """Transpose the first head's block of an attention's value projection."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    attention = _found([node for node in model.graph.node if node.op_type == "Attention"], "Attention")
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    if attention.input[2] not in shapes:
        raise BundleError("the graph does not give the shape of an attention's values", hint="export again")
    size = shapes[attention.input[2]][-1].dim_value
    node = made_by[attention.input[2]]
    while not (node.op_type == "MatMul" and node.input[1] in weights):
        node = made_by[next(name for name in node.input if name in made_by)]

    def transpose(weight: Array) -> Array:
        changed = weight.copy()
        changed[:size, :size] = weight[:size, :size].T
        return changed

    _edit(model, path, node.input[1], transpose)


def _of_another_checkpoint(model: onnx.ModelProto, path: Path) -> None:
    """Replace the largest matrix that one linear layer reads by one drawn at random, of its own mean and deviation.

    The result stands in for a tensor of another checkpoint: right in shape and scale, wrong in value.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    uses = [name for node in model.graph.node for name in node.input]
    nodes = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights and uses.count(node.input[1]) == 1
    ]
    _found(nodes, "linear layer")
    node = max(nodes, key=lambda node: int(np.prod(weights[node.input[1]].dims)))

    def drawn(weight: Array) -> Array:
        rng = np.random.default_rng(0)
        return rng.normal(weight.mean(dtype=np.float64), weight.std(dtype=np.float64), weight.shape).astype(
            weight.dtype
        )

    _edit(model, path, node.input[1], drawn)


def _found(nodes: Sequence[onnx.NodeProto], what: str) -> onnx.NodeProto:
    """Return the middle one of some nodes.

    Raises:
        BundleError: There are none.
    """
    if not nodes:
        raise BundleError(f"the graph holds no {what} to plant a fault in", hint="export at the default opset")
    return nodes[len(nodes) // 2]


def _replace_input(model: onnx.ModelProto, old: str, new: str) -> None:
    """Make every node that reads one value read another."""
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _put_first(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> None:
    others = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *others])


def _edit(model: onnx.ModelProto, path: Path, name: str, change: Callable[[Array], Array]) -> None:
    """Change an initializer's values in place, in the graph or in its external data file.

    Raises:
        BundleError: Not exactly one node reads it, so that more than one layer would change.
    """
    import onnx

    if sum(used == name for node in model.graph.node for used in node.input) != 1:
        raise BundleError(f"{path}: several nodes read {name}", hint="plant the fault in a trained checkpoint")
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    before = onnx.numpy_helper.to_array(tensor, str(path.parent))
    after = change(before).astype(before.dtype)
    if not onnx.external_data_helper.uses_external_data(tensor):
        tensor.CopyFrom(onnx.numpy_helper.from_array(after, name))
        return
    entries: Mapping[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    with (path.parent / entries["location"]).open("r+b") as file:
        file.seek(int(entries.get("offset", 0)))
        file.write(np.ascontiguousarray(after).tobytes())


_TO_FP16, _TO_FP32 = 10, 1  # onnx.TensorProto.FLOAT16 and FLOAT; listing the faults must not import onnx

#: Every fault by name.
FAULTS: dict[str, Fault] = {
    fault.name: fault
    for fault in (
        Fault("groupnorm-epsilon", "unet", _groupnorm_epsilon),
        Fault("convolution-scaled", "unet", _convolution_scaled),
        Fault("timestep-integer", "unet", _timestep(("Round", {}))),
        Fault("timestep-fp16", "unet", _timestep(("Cast", {"to": _TO_FP16}), ("Cast", {"to": _TO_FP32}))),
        Fault("guidance-halves-swapped", "denoise_step", _halves_swapped),
        Fault("scaling-factor-left-out", "vae_decoder", scaling_factor=1.0),
        Fault("lms-order-3", "denoise_step", _order_3),
        Fault("attention-head-transposed", "unet", _head_transposed),
        Fault("weight-of-another-checkpoint", "text_encoder", _of_another_checkpoint),
    )
}
