"""Cut the UNet into DeepCache's two passes, over its own weights file (Ma, Fang and Wang 2023, arXiv:2312.00858).

What enters the last concatenation of the U from below changes little from one step to the next (their section 3.2). The
whole pass is the UNet, and also gives these deep features; the shallow pass takes them, and computes what lies outside:
the first convolution, whose output is the skip connection there, and the last ResNet block with what follows it. So the
authors' code cuts where nothing else is said (``cache_branch_id=0``). No second export: the exported nodes are taken as
they are, as by ``sdrt.export.denoise_step``.
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

#: Counts changes of this module that change what it writes.
CUTTER = 1
FEATURES = "deep_features"
SAMPLE, OUTPUT = "sample", "out_sample"
#: Relative L2 error that the shallow pass, fed with the features of the same step, may have against the whole one, by
#: the graphs' precision. Both are the same nodes, and ONNX Runtime may fuse them otherwise around the cut; in fp16 it
#: rounds to 11 bits there. Features of another sample give more than 0.1.
TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2}


class Cut(NamedTuple):
    """Where a UNet's graph is cut.

    Attributes:
        deep: The value that holds the deep features.
        channels: How many they have.
        shallow: The nodes that the output needs beside the deep features, in order.
    """

    deep: str
    channels: int
    shallow: list[onnx.NodeProto]


def add_deepcache(bundle: Bundle, out: Path, *, progress: Progress = silent) -> Bundle:
    """Write a bundle with DeepCache's passes beside all that it held, published by one rename when it is whole.

    Before it is sealed, the shallow pass is held against the whole one by ONNX Runtime. Needs no torch.

    Args:
        bundle: In fp32 or fp16, with the UNet.
        out: The new bundle's folder; replaced when it exists.
        progress: Told of the cut.

    Raises:
        UsageError: The bundle is in int8.
        BundleError: It lacks the UNet, or this is no U whose first convolution is joined at its end.
        NumericError: The shallow pass differs from the whole one.
        BackendUnavailableError: onnxruntime is not installed.
        ResourceError: ``out`` cannot be written.
    """
    if bundle.manifest.precision == "int8":
        hint = "leave out int8 or DeepCache: give a bundle in fp32 or fp16"
        raise UsageError(f"{bundle.path} is in int8; DeepCache's passes are cut from fp32 and fp16 alone", hint=hint)
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
    """Write both passes beside the UNet's graph.

    Args:
        path: The UNet's graph.
        unet: Its part of the manifest.

    Returns:
        The passes' parts of the manifest.

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
    """Find the last concatenation of the U: of deep features with what the first convolution gave.

    Args:
        graph: The UNet's, in topological order, with shapes.

    Raises:
        BundleError: There is none, or the output needs more of what lies below than these features.
    """
    shapes = {value.name: axes(value) for value in (*graph.input, *graph.value_info)}
    joins = [node for node in graph.node if node.op_type == "Concat" and _joins_channels(node, shapes)]
    hint = "DeepCache needs a UNet of SD v1's kind; export the checkpoint again"
    if not joins:
        raise BundleError("the UNet's graph joins no skip connection", hint=hint)
    deep = joins[-1].input[0]
    shallow = _needed(graph.node, {OUTPUT}, deep)
    if any(join in shallow for join in joins[:-1]) or joins[-1] not in shallow:
        raise BundleError("the UNet's output needs more of its depth than one skip connection joins", hint=hint)
    batch, channels, *size = shapes.get(deep, ("",) * 4)
    if batch != "batch" or not isinstance(channels, int) or tuple(size) != shapes[SAMPLE][2:]:
        raise BundleError(f"the UNet's deep features have the shape {shapes.get(deep)}", hint=hint)
    told = {*shapes, *(weight.name for weight in graph.initializer), OUTPUT, ""}
    products = (node for node in shallow if node.op_type in PRODUCTS)
    if untold := [name for node in products for name in (*node.input, *node.output) if name not in told]:
        raise BundleError(f"the UNet's graph states no shape of {untold[0]}", hint=hint)
    return Cut(deep, channels, shallow)


def _joins_channels(node: onnx.NodeProto, shapes: dict[str, tuple[int | str, ...]]) -> bool:
    """Whether a concatenation joins two images by their channels."""
    return len(node.input) == 2 and len(shapes.get(node.output[0], ())) == 4 and node.attribute[0].i == 1


def _needed(nodes: Iterable[onnx.NodeProto], values: set[str], given: str) -> list[onnx.NodeProto]:
    """The nodes that values are computed by where one value is given, in their order."""
    needed, found = set(values), []
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(node.output):
            found.append(node)
            needed.update(name for name in node.input if name != given)
    return found[::-1]


def _parameters(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> int:
    """Weights that nodes read, counted where they are read: the exporter writes equal ones once."""
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    # What has no axis, or is multiplied element by element, is no weight but a constant, as the timestep's frequencies.
    sizes = {weight.name: math.prod(weight.dims) for weight in graph.initializer if weight.data_type in floats}
    scalars = {weight.name for weight in graph.initializer if not weight.dims}
    read = (name for node in nodes if node.op_type != "Mul" for name in node.input if name not in scalars)
    return sum(sizes.get(name, 0) for name in read)


def _make_whole(graph: onnx.GraphProto, cut: Cut, features: TensorSpec) -> None:
    """Give the deep features out, under their name."""
    graph.output.append(_features_of(graph, features))
    _rename(graph, cut.deep)


def _make_shallow(graph: onnx.GraphProto, cut: Cut, features: TensorSpec) -> None:
    """Take the deep features in, and leave out what only they need."""
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
    """The deep features as an input or output, of the sample's type."""
    import onnx

    (kind,) = (value.type.tensor_type.elem_type for value in graph.input if value.name == SAMPLE)
    return onnx.helper.make_tensor_value_info(FEATURES, kind, features.shape)


def _rename(graph: onnx.GraphProto, deep: str) -> None:
    """Call the deep features by their name wherever they are made or read."""
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == deep:
                    names[index] = FEATURES
    kept = [value for value in graph.value_info if value.name != deep]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def check_passes(folder: Path, passes: dict[ComponentName, Component]) -> float:
    """Hold the shallow pass, fed with the features of the same step, against the whole one, for one row.

    Args:
        folder: The bundle's.
        passes: Both passes' parts of its manifest.

    Returns:
        The relative L2 error of the shallow pass.

    Raises:
        NumericError: It is over the tolerance of the precision, or not a number.
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
