"""The exported graphs against the bundle's contract, on the tiny checkpoint."""

from __future__ import annotations

import json
import math
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import sdrt
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName
from sdrt.checkpoint import open_checkpoint, tokenizer_json
from sdrt.checkpoint.safetensors_header import read_header
from sdrt.export.bundle_export import MADE_BY

HIDDEN, TOKENS = 32, 77
LATENTS, PICTURE = (4, 64, 64), (3, 512, 512)
#: Inputs and output of each component, as the design lists them; 32 is the tiny checkpoint's hidden size.
CONTRACT: dict[ComponentName, dict[str, tuple[str, tuple[int, ...]]]] = {
    "text_encoder": {"input_ids": ("int64", (TOKENS,)), "last_hidden_state": ("float32", (TOKENS, HIDDEN))},
    "unet": {
        "sample": ("float32", LATENTS),
        "timestep": ("float32", ()),
        "encoder_hidden_states": ("float32", (TOKENS, HIDDEN)),
        "out_sample": ("float32", LATENTS),
    },
    "vae_encoder": {"sample": ("float32", PICTURE), "latent_parameters": ("float32", (8, 64, 64))},
    "vae_decoder": {"latent_sample": ("float32", LATENTS), "sample": ("float32", PICTURE)},
}
#: Traces of exporters: paths of this machine, of the installation, of sources; stack traces.
TRACES = (str(Path(sdrt.__file__).parent.parent), tempfile.gettempdir(), "/home/", "site-packages", ".py", "Traceback")


def graph(bundle: Bundle, component: ComponentName) -> onnx.ModelProto:
    return onnx.load(bundle.graph(component), load_external_data=False)


def operators(bundle: Bundle, component: ComponentName) -> list[str]:
    return [node.op_type for node in graph(bundle, component).graph.node]


@pytest.mark.parametrize("component", CONTRACT)
def test_names_dtypes_and_shapes(component: ComponentName, tiny_bundle: Bundle) -> None:
    described = tiny_bundle.manifest.components[component]
    specs = {spec.name: (spec.dtype, spec.shape) for spec in (*described.inputs, *described.outputs)}
    wanted = {name: (dtype, ("batch", *shape)) for name, (dtype, shape) in CONTRACT[component].items()}
    assert list(specs.items()) == list(wanted.items())
    values = graph(tiny_bundle, component).graph
    assert [value.name for value in (*values.input, *values.output)] == list(wanted)


@pytest.mark.parametrize(
    ("component", "batches"),
    [("text_encoder", (1, 2, 3, 16)), ("unet", (1, 2, 3, 16)), ("vae_encoder", (1, 3)), ("vae_decoder", (1, 3))],
)
def test_any_batch_runs(component: ComponentName, batches: tuple[int, ...], tiny_bundle: Bundle) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(tiny_bundle.graph(component), options, providers=["CPUExecutionProvider"])
    inputs = list(CONTRACT[component])[:-1]
    (output, (_, shape)) = list(CONTRACT[component].items())[-1]
    rng = np.random.default_rng(0)
    for batch in batches:
        feeds: dict[str, Any] = {}
        for name in inputs:
            dtype, axes = CONTRACT[component][name]
            values = rng.integers(0, 1000, (batch, *axes)) if dtype == "int64" else rng.random((batch, *axes))
            feeds[name] = values.astype(dtype)
        (result,) = session.run([output], feeds)
        assert result.shape == (batch, *shape)
        assert np.isfinite(result).all()
        first = {name: array[:1] for name, array in feeds.items()}
        (alone,) = session.run([output], first)
        # The rows of a batch do not mix; another batch size sums in another order.
        np.testing.assert_allclose(result[:1], alone, rtol=0, atol=1e-4 * float(np.abs(alone).max()))


def test_attention_and_group_normalisation_stay_whole(tiny_bundle: Bundle) -> None:
    for component in CONTRACT:
        opsets = {opset.domain: opset.version for opset in graph(tiny_bundle, component).opset_import}
        assert opsets[""] == 23 == tiny_bundle.manifest.opset
        found = operators(tiny_bundle, component)
        assert "Attention" in found
        assert "Softmax" not in found
        assert "InstanceNormalization" not in found
        assert ("GroupNormalization" in found) == (component != "text_encoder")
    # Two levels with one layer down and two up, and the middle: 7 transformers of self- and cross-attention each.
    assert operators(tiny_bundle, "unet").count("Attention") == 14


@pytest.mark.parametrize("component", CONTRACT)
def test_graphs_say_nothing_of_the_machine(component: ComponentName, tiny_bundle: Bundle) -> None:
    data = tiny_bundle.graph(component).read_bytes()
    for trace in TRACES:
        assert trace.encode() not in data, trace
    # Control: metadata that the exporter leaves in a node unless stripped.
    assert b"pkg.torch.onnx.stack_trace" not in data
    assert b"pkg.torch.onnx.name_scopes" in data


def test_weights_lie_beside_their_graph(tiny_bundle: Bundle) -> None:
    for component in CONTRACT:
        described = tiny_bundle.manifest.components[component]
        assert described.graph == f"{component}/model.onnx"
        assert described.weights == f"{component}/model.onnx.data"
        for tensor in graph(tiny_bundle, component).graph.initializer:
            places = {entry.value for entry in tensor.external_data if entry.key == "location"}
            assert places <= {"model.onnx.data"}


def test_parameters_are_the_checkpoints(tiny_bundle: Bundle, tiny_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_path))
    counts = {
        component: sum(
            math.prod(tensor.shape) for tensor in read_header(checkpoint.weights(component)).tensors.values()
        )
        for component in ("text_encoder", "unet", "vae")
    }
    found = {name: component.parameters for name, component in tiny_bundle.manifest.components.items()}
    assert found["text_encoder"] == counts["text_encoder"]
    assert found["unet"] == counts["unet"]
    assert found["vae_encoder"] + found["vae_decoder"] == counts["vae"]
    assert all(component.flops > 0 for component in tiny_bundle.manifest.components.values())


def test_tokenizer_and_scheduler_come_along(tiny_bundle: Bundle, tiny_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_path))
    assert (tiny_bundle.path / "tokenizer" / "tokenizer.json").read_bytes() == tokenizer_json(checkpoint)
    scheduler = json.loads((tiny_bundle.path / "scheduler" / "scheduler_config.json").read_bytes())
    assert scheduler == checkpoint.scheduler


def test_the_manifest_says_what_it_was_made_from_and_by(tiny_bundle: Bundle, tiny_path: Path) -> None:
    manifest = tiny_bundle.manifest
    checkpoint = open_checkpoint(str(tiny_path))
    assert (manifest.checkpoint.name, manifest.checkpoint.digest) == ("tiny", checkpoint.digest)
    assert manifest.versions == {package: version(package) for package in MADE_BY}
    model = manifest.model
    assert (model.latent_channels, model.latent_size, model.image_size) == (4, 64, 512)
    assert (model.max_tokens, model.hidden_size, model.scaling_factor) == (TOKENS, HIDDEN, 0.18215)
    Bundle.open(tiny_bundle.path, verify=True)
