"""The composed denoising step over hand-written graphs: equal to the plain step, stable bytes, one weights file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sdrt.arrays import relative_l2
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import COMPONENTS, ComponentName, Precision
from sdrt.errors import BundleError, NumericError, TrustError
from sdrt.export.check import STEP_TOLERANCES, check_denoise_step
from sdrt.export.denoise_step import compose, write_denoise_step
from sdrt.export.onnx_export import tensor_specs
from sdrt.libraries.openvino import core
from sdrt.sampling.noise_config import PredictionType
from tests.models.tiny_bundle import tiny_bundle

WITH_STEP: tuple[ComponentName, ...] = (*COMPONENTS, "denoise_step")
#: The names, types and shapes of the contract, for the hand-made sizes.
CONTRACT = {
    "latents": ("batch", 4, 8, 8),
    "uncond_states": ("batch", 7, 8),
    "cond_states": ("batch", 7, 8),
    "timestep": ("batch",),
    "sigma": ("batch",),
    "guidance_scale": ("batch",),
    "lms_coefficients": ("batch", 4),
    "history": ("batch", 4, 4, 8, 8),
    "next_latents": ("batch", 4, 8, 8),
    "next_history": ("batch", 4, 4, 8, 8),
}

Edit = Callable[[onnx.ModelProto], None]


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    precision: Precision = request.param
    return tiny_bundle(tmp_path_factory.mktemp(precision) / "bundle", components=WITH_STEP, precision=precision)


@pytest.fixture
def unet(bundle: Bundle, tmp_path: Path) -> Path:
    """Copy the UNet's folder."""
    shutil.copytree(bundle.path / "unet", tmp_path / "unet")
    return tmp_path / "unet" / "model.onnx"


def model_of(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def feeds_of(bundle: Bundle, batch: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    inputs = bundle.manifest.components["denoise_step"].inputs
    return {s.name: rng.uniform(0.5, 2, (batch, *map(int, s.shape[1:]))).astype(s.dtype) for s in inputs}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_it_equals_the_plain_step(bundle: Bundle, unet: Path, prediction_type: PredictionType) -> None:
    step = write_denoise_step(unet, prediction_type)
    error = check_denoise_step(unet, step, prediction_type, bundle.manifest.precision)
    # In fp32 the two differ by the rounding of a few operations; in fp16 as check.STEP_TOLERANCES says.
    assert error < (1e-6 if bundle.manifest.precision == "fp32" else STEP_TOLERANCES["fp16"])


def exchange_halves(model: onnx.ModelProto) -> None:
    for constant in model.graph.initializer:
        if constant.name in ("step.first", "step.second"):
            constant.CopyFrom(numpy_helper.from_array(1 - numpy_helper.to_array(constant), constant.name))


def reverse_coefficients(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.arange(3, -1, -1), "backwards"))
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if "lms_coefficients" in n.input)
    node.input[0] = "reversed"
    model.graph.node.insert(index, helper.make_node("Gather", ["lms_coefficients", "backwards"], ["reversed"], axis=1))


def keep_oldest(model: onnx.ModelProto) -> None:
    """Drop the newest derivative instead of the oldest."""
    for constant in model.graph.initializer:
        if constant.name in ("step.history_start", "step.history_end"):
            constant.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(constant) + 1, constant.name))


@pytest.mark.parametrize("spoil", [exchange_halves, reverse_coefficients, keep_oldest])
def test_a_wrong_step_is_refused(bundle: Bundle, unet: Path, spoil: Edit) -> None:
    step = write_denoise_step(unet, "epsilon")
    model = model_of(step)
    spoil(model)
    step.write_bytes(model.SerializeToString())
    with pytest.raises(NumericError, match=r"differs from the plain step by (0\.[1-9]|[1-9])"):
        check_denoise_step(unet, step, "epsilon", bundle.manifest.precision)


def test_another_prediction_type_is_refused(bundle: Bundle, unet: Path) -> None:
    step = write_denoise_step(unet, "v_prediction")
    with pytest.raises(NumericError, match="differs from the plain step"):
        check_denoise_step(unet, step, "epsilon", bundle.manifest.precision)


def test_names_types_and_shapes_are_the_contract(bundle: Bundle) -> None:
    component = bundle.manifest.components["denoise_step"]
    specs = (*component.inputs, *component.outputs)
    assert {spec.name: spec.shape for spec in specs} == CONTRACT
    states = "float16" if bundle.manifest.precision == "fp16" else "float32"
    assert {spec.dtype for spec in specs if spec.name.endswith("_states")} == {states}
    assert {spec.dtype for spec in specs if not spec.name.endswith("_states")} == {"float32"}
    assert tensor_specs(bundle.graph("denoise_step")) == (component.inputs, component.outputs)


def test_the_manifest_describes_it_by_the_unet(bundle: Bundle) -> None:
    unet, step = bundle.manifest.components["unet"], bundle.manifest.components["denoise_step"]
    assert step.graph == "unet/denoise_step.onnx"
    assert step.weights == unet.weights == "unet/model.onnx.data"
    assert (step.parameters, step.precision, step.flops) == (unet.parameters, unet.precision, 2 * unet.flops)


def test_the_unet_gets_both_halves_scaled(bundle: Bundle, unet: Path) -> None:
    """Check the UNet's input, since the hand-made UNet normalises its sample."""
    step = write_denoise_step(unet, "epsilon")
    model = model_of(step)
    kind = next(v.type.tensor_type.elem_type for v in model.graph.input if v.name == "uncond_states")
    model.graph.output.append(helper.make_tensor_value_info("unet.sample", kind, ("rows", 4, 8, 8)))
    step.write_bytes(model.SerializeToString())
    feeds = feeds_of(bundle)
    (sample,) = session(step).run(["unet.sample"], feeds)
    wanted = feeds["latents"] / np.sqrt(feeds["sigma"] ** 2 + 1).reshape(-1, 1, 1, 1)
    # The rounding of a square root and a quotient; in fp16 also that of its 11 bits.
    tolerance = 1e-6 if bundle.manifest.precision == "fp32" else 1e-3
    np.testing.assert_allclose(sample, np.concatenate([wanted, wanted]), rtol=tolerance)


def types_of(bundle: Bundle) -> dict[str, int]:
    """Return the type of every value of the step's graph."""
    model = model_of(bundle.graph("denoise_step"))
    half = bundle.manifest.precision == "fp16"
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    # onnx does not infer through GroupNormalization.
    model.graph.value_info.append(helper.make_tensor_value_info("normal", kind, ("rows", 4, 8, 8)))
    inferred = onnx.shape_inference.infer_shapes(model)
    return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}


def test_everything_but_the_unet_is_fp32(bundle: Bundle) -> None:
    types = types_of(bundle)
    own = {name: kind for name, kind in types.items() if name.startswith("step.")}
    border = own.pop("step.scaled_as_unet", None)
    nodes = model_of(bundle.graph("denoise_step")).graph.node
    assert len(own) == len([n for n in nodes if n.output[0].startswith("step.")]) - (border is not None)
    assert set(own.values()) == {TensorProto.FLOAT}
    half = bundle.manifest.precision == "fp16"
    assert border == (TensorProto.FLOAT16 if half else None)
    assert types["unet.sample"] == types["unet.out_sample"] == (TensorProto.FLOAT16 if half else TensorProto.FLOAT)


def test_the_timestep_stays_fp32_up_to_the_sine(bundle: Bundle) -> None:
    types = types_of(bundle)
    (sine,) = (node for node in model_of(bundle.graph("denoise_step")).graph.node if node.op_type == "Sin")
    assert types["unet.timestep"] == types[sine.input[0]] == TensorProto.FLOAT


def test_no_weight_is_written_twice(bundle: Bundle) -> None:
    places = {
        entry.value
        for weight in model_of(bundle.graph("denoise_step")).graph.initializer
        for entry in weight.external_data
        if entry.key == "location"
    }
    assert places == {"model.onnx.data"}
    assert sorted(path.name for path in (bundle.path / "unet").iterdir()) == [
        "denoise_step.onnx",
        "model.onnx",
        "model.onnx.data",
    ]
    inline = [w for w in model_of(bundle.graph("denoise_step")).graph.initializer if w.name.startswith("step.")]
    assert max(len(weight.raw_data) for weight in inline) <= 64


def test_a_changed_weight_is_found_in_the_shared_file(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle.path, copy)
    opened = Bundle.open(copy, verify=True)
    assert opened.size_bytes == sum(path.stat().st_size for path in copy.rglob("*.*")) - len(
        (copy / "manifest.json").read_bytes()
    )
    weights = copy / "unet" / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(TrustError, match=r"model\.onnx\.data does not match its digest"):
        opened.verify_weights()


def test_openvino_opens_it_too(bundle: Bundle) -> None:
    step = bundle.graph("denoise_step")
    feeds = feeds_of(bundle)
    compiled = core().compile_model(step, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(feeds)
    for name, expected in zip(("next_latents", "next_history"), session(step).run(None, feeds), strict=True):
        # fp16 weights are the same; both libraries compute in fp32 and round elsewhere.
        assert relative_l2(outputs[name], expected) < (1e-5 if bundle.manifest.precision == "fp32" else 1e-2)


def test_equal_unets_give_equal_bytes_in_any_folder(unet: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(unet.parent, elsewhere)
    first = write_denoise_step(unet, "epsilon").read_bytes()
    assert write_denoise_step(elsewhere / "model.onnx", "epsilon").read_bytes() == first
    assert str(tmp_path).encode() not in first
    assert write_denoise_step(unet, "v_prediction").read_bytes() != first


def test_the_opset_is_the_unets(unet: Path) -> None:
    model, step = model_of(unet), model_of(write_denoise_step(unet, "epsilon"))
    assert list(step.opset_import) == list(model.opset_import)
    assert step.ir_version == model.ir_version
    assert not step.metadata_props


def test_names_that_the_unet_uses_itself_do_no_harm(bundle: Bundle, unet: Path) -> None:
    model = model_of(unet)
    renamed = {"convolved": "sigma", "normal": "history", "kernel": "cond_states", "shift": "next_latents"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    for weight in model.graph.initializer:
        weight.name = renamed.get(weight.name, weight.name)
    unet.write_bytes(model.SerializeToString())
    check_denoise_step(unet, write_denoise_step(unet, "epsilon"), "epsilon", bundle.manifest.precision)


@pytest.mark.parametrize(("value", "axis"), [("shift", "rows"), ("convolved", "batch")])
def test_the_batch_of_both_halves_is_not_called_batch(unet: Path, value: str, axis: str) -> None:
    """Expect "batch" only where both halves still share one row a picture."""
    model = model_of(unet)
    for name in ("convolved", "shift"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, 1, ("batch", 4, 8, 8)))
    compose(model, "epsilon")
    (found,) = (info for info in model.graph.value_info if info.name == value)
    assert found.type.tensor_type.shape.dim[0].dim_param == axis


def test_a_graph_that_is_no_unet_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="inputs or outputs: latent_sample, sample"):
        compose(model_of(bundle.graph("vae_decoder")), "epsilon")
