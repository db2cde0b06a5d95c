"""Split the UNet into DeepCache's two passes, which share its weights file (Ma, Fang and Wang 2023, arXiv:2312.00858).

The deep features, which enter the UNet's last concatenation from the deeper levels, change little from one step to the
next (section 3.2). The whole pass is the UNet with the deep features as a further output. The shallow pass takes them
as an input and computes only the rest: the first convolution, whose output is the skip connection of that
concatenation, and the last ResNet block with all that follows. This is the default cut of the authors' code
(``cache_branch_id=0``). Nothing is exported again: both passes reuse the exported nodes, as `sdrt.export.denoise_step`
does.
"""

from __future__ import annotations

import math
import shutil
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sdrt.arrays import relative_l2
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import DEEPCACHE, Component, ComponentName, Manifest, TensorSpec, file_records, seal
from sdrt.errors import BundleError, NumericError, UsageError
from sdrt.export.cpu_session import open_cpu_session
from sdrt.export.shared_prefix import PRODUCTS, count_flops
from sdrt.files import disk_errors, folder_published_as, utf8_path
from sdrt.graphs.values import axes
from sdrt.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx

#: Version of the cut; increased when a change of this module changes its output.
CUTTER = 1
FEATURES = "deep_features"
SAMPLE, OUTPUT = "sample", "out_sample"
#: Relative L2 error that the shallow pass, fed with the features of the same step, may have against the whole one, by
#: the graphs' precision. Both consist of the same nodes, but ONNX Runtime may fuse them differently around the cut; in
#: fp16 it rounds to 11 bits there. Features of another sample give more than 0.1.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2}


class Cut(NamedTuple):
    """Cut of a UNet's graph.

    Attributes:
        deep: Name of the value that holds the deep features.
        channels: Number of their channels.
        shallow: Nodes that compute the output from the deep features, in topological order.
    """

    deep: str
    channels: int
    shallow: list[onnx.NodeProto]


def add_deepcache(bundle: Bundle, out: Path, *, progress: Progress = silent) -> Bundle:
    """Copy a bundle and add DeepCache's passes to it, published by one rename when it is whole.

    Before the copy is sealed, the shallow pass is checked against the whole one with ONNX Runtime. Needs no torch.

    Args:
        bundle: Bundle in fp32 or fp16, with the UNet.
        out: The new bundle's folder; replaced if it exists.
        progress: Progress callback.

    Raises:
        UsageError: The bundle is in int8.
        BundleError: The bundle has no UNet, or the UNet's graph cannot be cut (see `find_cut`).
        NumericError: The shallow pass differs from the whole one.
        BackendUnavailableError: onnxruntime is not installed.
        ResourceError: ``out`` cannot be written.
    """
    if bundle.manifest.precision == "int8":
        hint = "leave out int8 or DeepCache"
        raise UsageError(f"{bundle.path} is in int8; DeepCache needs a bundle in fp32 or fp16", hint=hint)
    unet = bundle.component("unet")
    bundle.graph("unet")
    bundle.verify_weights()
    with (
        progress.stage("cut the UNet for DeepCache", 2) as advance,
        folder_published_as(out) as published,
        disk_errors(published),
        utf8_path(published) as folder,
    ):
        for name in bundle.manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, folder / name)
        passes = write_passes(folder / unet.graph, unet)
        advance(1)
        check_passes(folder, passes)
        advance(1)
        manifest = bundle.manifest.model_copy(
            update={
                "components": {**bundle.manifest.components, **passes},
                "files": file_records(folder),
                "versions": {**bundle.manifest.versions, "onnx": version("onnx")},
            }
        )
        seal(folder, Manifest.model_validate(manifest.model_dump()))
    return Bundle.open(out)


def write_passes(path: Path, unet: Component) -> dict[ComponentName, Component]:
    """Write the graphs of both passes beside the UNet's graph.

    Args:
        path: The UNet's graph.
        unet: The UNet's record in the manifest.

    Returns:
        The passes' records for the manifest, by component name.

    Raises:
        BundleError: The graph cannot be cut.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    cut = find_cut(model.graph)
    sample = unet.inputs[0]
    features = sample.model_copy(update={"name": FEATURES, "shape": (sample.shape[0], cut.channels, *sample.shape[2:])})
    flops = count_flops(model.graph, cut.shallow)
    parameters = _parameters(model.graph, cut.shallow)
    described = {}
    for name, compose in zip(DEEPCACHE, (_make_whole, _make_shallow), strict=True):
        made = onnx.ModelProto()
        made.CopyFrom(model)
        compose(made.graph, cut, features)
        made.graph.name = name
        target = path.with_name(f"{name}.onnx")
        target.write_bytes(made.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(target))
        described[name] = unet.model_copy(update={"graph": PurePosixPath(unet.graph).with_name(target.name).as_posix()})
    whole, shallow = DEEPCACHE
    described[whole] = described[whole].model_copy(update={"outputs": (*unet.outputs, features)})
    described[shallow] = described[shallow].model_copy(
        update={
            "inputs": (*unet.inputs, features),
            "flops": flops,
            "parameters": parameters,
        }
    )
    return described


def find_cut(graph: onnx.GraphProto) -> Cut:
    """Find the UNet's last concatenation: deep features with the output of the first convolution.

    Args:
        graph: The UNet's graph, in topological order, with shapes.

    Raises:
        BundleError: There is no concatenation, the output depends on deeper levels in another way too, or a shape is
            missing or unexpected.
    """
    shapes = {value.name: axes(value) for value in (*graph.input, *graph.value_info)}
    joins = [node for node in graph.node if node.op_type == "Concat" and _joins_channels(node, shapes)]
    hint = "DeepCache needs a UNet of SD v1's kind; export the checkpoint again"
    if not joins:
        raise BundleError("the UNet's graph has no skip connection", hint=hint)
    deep = joins[-1].input[0]
    shallow = _needed(graph.node, {OUTPUT}, deep)
    if any(join in shallow for join in joins[:-1]) or joins[-1] not in shallow:
        raise BundleError("the UNet's output depends on deeper levels beside its last skip connection", hint=hint)
    batch, channels, *size = shapes.get(deep, ("",) * 4)
    if batch != "batch" or not isinstance(channels, int) or tuple(size) != shapes[SAMPLE][2:]:
        raise BundleError(f"the UNet's deep features have the unexpected shape {shapes.get(deep)}", hint=hint)
    known = {*shapes, *(weight.name for weight in graph.initializer), OUTPUT, ""}
    products = (node for node in shallow if node.op_type in PRODUCTS)
    if unknown := [name for node in products for name in (*node.input, *node.output) if name not in known]:
        raise BundleError(f"the UNet's graph has no shape for {unknown[0]}", hint=hint)
    return Cut(deep, channels, shallow)


def _joins_channels(node: onnx.NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> bool:
    """Return whether a concatenation joins two 4-dimensional tensors along their channels."""
    return len(node.input) == 2 and len(shapes.get(node.output[0], ())) == 4 and node.attribute[0].i == 1


def _needed(nodes: Iterable[onnx.NodeProto], values: set[str], given: str) -> list[onnx.NodeProto]:
    """Return the nodes that compute ``values`` if ``given`` is known, in topological order."""
    needed, found = set(values), []
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(node.output):
            found.append(node)
            needed.update(name for name in node.input if name != given)
    return found[::-1]


def _parameters(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> int:
    """Count the weights that nodes read; one that is read twice counts twice, since the exporter merges equal ones."""
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    # Scalars and tensors multiplied element by element (the timestep's frequencies) are constants, not weights.
    sizes = {weight.name: math.prod(weight.dims) for weight in graph.initializer if weight.data_type in floats}
    scalars = {weight.name for weight in graph.initializer if not weight.dims}
    read = (name for node in nodes if node.op_type != "Mul" for name in node.input if name not in scalars)
    return sum(sizes.get(name, 0) for name in read)


def _make_whole(graph: onnx.GraphProto, cut: Cut, features: TensorSpec) -> None:
    """Add the deep features to the graph's outputs, in place."""
    graph.output.append(_features_of(graph, features))
    _rename(graph, cut.deep)


def _make_shallow(graph: onnx.GraphProto, cut: Cut, features: TensorSpec) -> None:
    """Make the deep features an input of the graph, and remove what only they need, in place."""
    graph.input.append(_features_of(graph, features))
    read = {name for node in cut.shallow for name in node.input}
    made = {name for node in cut.shallow for name in node.output}
    for field, values in (
        (graph.node, cut.shallow),
        (graph.initializer, [weight for weight in graph.initializer if weight.name in read]),
        (graph.value_info, [value for value in graph.value_info if value.name in made]),
    ):
        kept = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(kept)
    _rename(graph, cut.deep)


def _features_of(graph: onnx.GraphProto, features: TensorSpec) -> onnx.ValueInfoProto:
    """Describe the deep features as an input or output, of the sample's type."""
    import onnx

    (kind,) = (value.type.tensor_type.elem_type for value in graph.input if value.name == SAMPLE)
    return onnx.helper.make_tensor_value_info(FEATURES, kind, features.shape)


def _rename(graph: onnx.GraphProto, deep: str) -> None:
    """Rename the value ``deep`` to `FEATURES` wherever nodes write or read it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == deep:
                    names[index] = FEATURES
    kept = [value for value in graph.value_info if value.name != deep]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def check_passes(folder: Path, passes: dict[ComponentName, Component]) -> float:
    """Compare the shallow pass, fed with the features of the same step, with the whole pass, for one row.

    Args:
        folder: The bundle's folder.
        passes: The records of both passes in its manifest.

    Returns:
        The relative L2 error of the shallow pass.

    Raises:
        NumericError: The error exceeds the tolerance of the precision, or is NaN.
        BackendUnavailableError: onnxruntime is not installed.
    """
    whole, shallow = (passes[name] for name in DEEPCACHE)
    rng = np.random.default_rng(0)
    feeds: dict[str, npt.NDArray[np.floating]] = {}
    for spec in whole.inputs:
        shape = (1, *(int(axis) for axis in spec.shape[1:]))
        feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
    feeds["timestep"] = np.full(1, 500.0, np.float32)
    # One after the other, so that only one holds the weights.
    expected, features = open_cpu_session(folder / whole.graph).run([OUTPUT, FEATURES], feeds)
    (found,) = open_cpu_session(folder / shallow.graph).run([OUTPUT], {**feeds, FEATURES: features})
    error = relative_l2(found, expected)
    if not error <= TOLERANCES[whole.precision]:
        raise NumericError(
            f"deepcache_shallow differs from the whole UNet on its own features by {error:.2g} (relative L2); "
            f"{TOLERANCES[whole.precision]:.0e} is allowed in {whole.precision}",
            hint="report this with the checkpoint's config",
        )
    return error
