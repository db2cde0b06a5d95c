"""A bundle of hand-written graphs: the contract's inputs and outputs, a few operators each, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import (
    DEEPCACHE,
    CheckpointRecord,
    Component,
    ComponentName,
    Manifest,
    ModelRecord,
    Precision,
    TensorSpec,
    file_records,
    seal,
)
from sdrt.limits import DEFAULT_GUIDANCE_SCALE

Array = npt.NDArray[Any]

HIDDEN_SIZE = 8
MAX_TOKENS = 7
VOCABULARY = 50
LATENTS = (4, 8, 8)
PICTURE = (3, 16, 16)
MODEL = ModelRecord(
    latent_channels=4,
    latent_size=8,
    image_size=16,
    scaling_factor=0.5,
    max_tokens=MAX_TOKENS,
    hidden_size=HIDDEN_SIZE,
)
CHECKPOINT = CheckpointRecord(name="tiny", digest="ab" * 32)


def tiny_bundle(
    folder: Path,
    *,
    seed: int = 0,
    components: tuple[ComponentName, ...] = (),
    precision: Precision = "fp32",
    deep: bool = False,
    tokenizer: str = "{}",
    scheduler: str = '{"beta_start": 0.1}',
    guidance_scale: float = DEFAULT_GUIDANCE_SCALE,
) -> Bundle:
    """Write and open a bundle whose convolutions and attention are real but tiny.

    Args:
        folder: Folder to write; created if missing.
        seed: Seed of the weights.
        components: Components to write; by default the four of a checkpoint. denoise_step and DeepCache's passes,
            for which the UNet has a depth, come after unet.
        precision: fp32 or fp16.
        deep: Whether the UNet has a depth; with DeepCache's passes it always has.
        tokenizer: Text of tokenizer.json.
        scheduler: Text of scheduler_config.json.
        guidance_scale: Recommended guidance scale.
    """
    rng = np.random.default_rng(seed)
    unet = _deep_unet if deep or not set(DEEPCACHE).isdisjoint(components) else _unet
    graphs = {"text_encoder": _text_encoder, "unet": unet, "vae_encoder": _vae_encoder, "vae_decoder": _vae_decoder}
    records: dict[ComponentName, Component] = {}
    for name in components or ("text_encoder", "unet", "vae_encoder", "vae_decoder"):
        if name == "denoise_step":
            records[name] = _write_step(folder, records["unet"], scheduler)
            continue
        if name in DEEPCACHE:
            records |= _write_passes(folder, records["unet"])
            continue
        graph = graphs[name](rng)
        if precision == "fp16":
            _halve(graph)
        records[name] = _write(folder, name, graph, precision)
    for file, text in (("tokenizer/tokenizer.json", tokenizer), ("scheduler/scheduler_config.json", scheduler)):
        (folder / file).parent.mkdir()
        (folder / file).write_text(text)
    manifest = Manifest(
        schema_version=1,
        checkpoint=CHECKPOINT,
        precision=precision,
        opset=23,
        model=MODEL.model_copy(update={"guidance_scale": guidance_scale}),
        components=records,
        files=file_records(folder),
        versions={},
    )
    seal(folder, manifest)
    return Bundle.open(folder)


def feeds(component: ComponentName, batch: int, seed: int = 0) -> dict[str, Array]:
    """Draw inputs of a component of the tiny bundle."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((batch, MAX_TOKENS, HIDDEN_SIZE), np.float32)
    noise = rng.standard_normal((batch, *LATENTS), np.float32)
    inputs: dict[ComponentName, dict[str, Array]] = {
        "text_encoder": {"input_ids": rng.integers(0, VOCABULARY, (batch, MAX_TOKENS))},
        "unet": {"sample": noise, "timestep": np.full(batch, 978.612, np.float32), "encoder_hidden_states": states},
        "denoise_step": {},
        "deepcache_whole": {},
        "deepcache_shallow": {},
        "vae_encoder": {"sample": rng.uniform(-1, 1, (batch, *PICTURE)).astype(np.float32)},
        "vae_decoder": {"latent_sample": noise},
    }
    return inputs[component]


def _write_step(folder: Path, unet: Component, scheduler: str) -> Component:
    # Imported here: the package of the exporter imports torch.
    from sdrt.export.denoise_step import describe, write_denoise_step

    prediction_type = json.loads(scheduler).get("prediction_type", "epsilon")
    return describe(unet, write_denoise_step(folder / unet.graph, prediction_type))


def _write_passes(folder: Path, unet: Component) -> dict[ComponentName, Component]:
    # Imported here, as above.
    from sdrt.export.deepcache import write_passes

    return write_passes(folder / unet.graph, unet)


def _halve(graph: onnx.GraphProto) -> None:
    """Convert a graph to fp16, in place; the timestep and its factor stay fp32 up to the sine."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT and value.name != "timestep":
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT and weight.name != "thousandth":
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    for index, node in enumerate(graph.node):
        if node.op_type == "Sin":
            node.output[0] = "wave_fp32"
            graph.node.insert(index + 1, helper.make_node("Cast", ["wave_fp32"], ["wave"], to=TensorProto.FLOAT16))
            return


def _write(folder: Path, name: ComponentName, graph: onnx.GraphProto, precision: Precision) -> Component:
    path = folder / name / "model.onnx"
    path.parent.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=128)
    return Component(
        graph=f"{name}/model.onnx",
        weights=f"{name}/model.onnx.data",
        precision=precision,
        inputs=tuple(_spec(value) for value in graph.input),
        outputs=tuple(_spec(value) for value in graph.output),
        parameters=sum(int(np.prod(weight.dims)) for weight in graph.initializer),
        flops=0,
    )


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
    dtypes: dict[int, str] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT64: "int64"}
    return TensorSpec.model_validate({"name": value.name, "dtype": dtypes[tensor.elem_type], "shape": shape})


def _graph(nodes: list[onnx.NodeProto], inputs: dict[str, Any], output: str, shape: Any, **weights: Array) -> Any:
    dtype = {"input_ids": TensorProto.INT64}
    return helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, dtype.get(n, TensorProto.FLOAT), ("batch", *s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ("batch", *shape))],
        [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
    )


def _text_encoder(rng: np.random.Generator) -> Any:
    states = (MAX_TOKENS, HIDDEN_SIZE)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Attention", ["embedded"] * 3, ["last_hidden_state"], q_num_heads=2, kv_num_heads=2),
    ]
    table = rng.standard_normal((VOCABULARY, HIDDEN_SIZE), np.float32)
    return _graph(nodes, {"input_ids": (MAX_TOKENS,)}, "last_hidden_state", states, table=table)


def _unet(rng: np.random.Generator) -> Any:
    """Build a group normalisation and a convolution of the sample, shifted by functions of timestep and states."""
    nodes = [
        helper.make_node("GroupNormalization", ["sample", "one", "zero"], ["normal"], num_groups=2),
        helper.make_node("Conv", ["normal", "kernel"], ["convolved"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["timestep", "column"], ["time"]),
        helper.make_node("Mul", ["time", "thousandth"], ["scaled"]),
        helper.make_node("Sin", ["scaled"], ["wave"]),
        helper.make_node("ReduceMean", ["encoder_hidden_states", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "column"], ["context"]),
        helper.make_node("Add", ["wave", "context"], ["shift"]),
        helper.make_node("Add", ["convolved", "shift"], ["out_sample"]),
    ]
    return _graph(
        nodes,
        {"sample": LATENTS, "timestep": (), "encoder_hidden_states": (MAX_TOKENS, HIDDEN_SIZE)},
        "out_sample",
        LATENTS,
        one=np.ones(4, np.float32),
        zero=np.zeros(4, np.float32),
        kernel=rng.standard_normal((4, 4, 3, 3), np.float32),
        column=np.array([-1, 1, 1, 1]),
        thousandth=np.array(1e-3, np.float32),
        axes=np.array([1, 2]),
    )


def _deep_unet(rng: np.random.Generator) -> Any:
    """Build a U of two levels: the lower takes timestep and states, the upper the timestep, and joins both."""
    nodes = [
        helper.make_node("Conv", ["sample", "entry_kernel"], ["entry"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["timestep", "column"], ["time"]),
        helper.make_node("Mul", ["time", "thousandth"], ["scaled"]),
        helper.make_node("Sin", ["scaled"], ["wave"]),
        helper.make_node("ReduceMean", ["encoder_hidden_states", "axes"], ["mean"], keepdims=1),
        helper.make_node("Reshape", ["mean", "column"], ["context"]),
        helper.make_node("AveragePool", ["entry"], ["low"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Add", ["low", "wave"], ["timed"]),
        helper.make_node("Add", ["timed", "context"], ["told"]),
        helper.make_node("ConvTranspose", ["told", "deep_kernel"], ["deep"], strides=[2, 2]),
        helper.make_node("Concat", ["deep", "entry"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "kernel"], ["left"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["left", "wave"], ["out_sample"]),
    ]
    graph = _graph(
        nodes,
        {"sample": LATENTS, "timestep": (), "encoder_hidden_states": (MAX_TOKENS, HIDDEN_SIZE)},
        "out_sample",
        LATENTS,
        entry_kernel=rng.standard_normal((3, 4, 3, 3), np.float32) / 6,
        deep_kernel=rng.standard_normal((3, 6, 2, 2), np.float32),
        kernel=rng.standard_normal((4, 9, 3, 3), np.float32) / 9,
        column=np.array([-1, 1, 1, 1]),
        thousandth=np.array(1e-3, np.float32),
        axes=np.array([1, 2]),
    )
    for name, channels in (("entry", 3), ("deep", 6), ("joined", 9), ("left", 4)):
        shape = ("batch", channels, *LATENTS[1:])
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return graph


def _vae_decoder(rng: np.random.Generator) -> Any:
    node = helper.make_node("ConvTranspose", ["latent_sample", "kernel"], ["wide"], strides=[2, 2])
    squash = helper.make_node("Tanh", ["wide"], ["sample"])
    kernel = rng.standard_normal((4, 3, 2, 2), np.float32)
    return _graph([node, squash], {"latent_sample": LATENTS}, "sample", PICTURE, kernel=kernel)


def _vae_encoder(rng: np.random.Generator) -> Any:
    node = helper.make_node("Conv", ["sample", "kernel"], ["latent_parameters"], strides=[2, 2])
    kernel = rng.standard_normal((8, 3, 2, 2), np.float32)
    return _graph([node], {"sample": PICTURE}, "latent_parameters", (8, 8, 8), kernel=kernel)
