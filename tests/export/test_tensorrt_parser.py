"""TensorRT-RTX's parser takes the fp16 UNet and the step around it, strongly typed, without a warning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName
from sdrt.artefacts.store import Store
from sdrt.checkpoint import open_checkpoint
from sdrt.export import export_bundle
from sdrt.prepare.bundles import open_bundle
from sdrt.prepare.source import Source
from tests.models.tiny_bundle import tiny_bundle as write_bundle

#: Runs in a separate process: TensorRT keeps a process's first logger.
PARSE = """
import json, sys
import tensorrt_rtx as trt

class Logger(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.said = []
    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.WARNING:
            self.said.append(message)

logger = Logger()
builder = trt.Builder(logger)
for path in sys.argv[1:]:
    logger.said.clear()
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(path)
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
    facts = {"parsed": parsed, "said": logger.said + errors, "layers": network.num_layers,
             "tensors": {t.name: [str(t.dtype).split(".")[-1], list(t.shape)] for t in tensors}}
    print(json.dumps(facts), flush=True)
"""


def parse(*paths: Path) -> list[dict[str, Any]]:
    done = subprocess.run([sys.executable, "-c", PARSE, *map(str, paths)], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def hold(bundle: Bundle, *facts: dict[str, Any]) -> None:
    names = {"float16": "HALF", "float32": "FLOAT"}
    for name, fact in zip(("unet", "denoise_step"), facts, strict=True):
        assert fact["parsed"]
        assert fact["said"] == []
        component = bundle.manifest.components[name]  # type: ignore[index]
        assert fact["tensors"] == {
            spec.name: [names[spec.dtype], [-1, *spec.shape[1:]]] for spec in (*component.inputs, *component.outputs)
        }


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_hand_made_graphs(tmp_path: Path, prediction_type: str) -> None:
    scheduler = json.dumps({"prediction_type": prediction_type})
    bundle = write_bundle(
        tmp_path / "bundle", components=("unet", "denoise_step"), precision="fp16", scheduler=scheduler
    )
    hold(bundle, *parse(bundle.graph("unet"), bundle.graph("denoise_step")))


def test_a_graph_of_mixed_types_is_not_taken(tmp_path: Path) -> None:
    """Remove the cast at the UNet's border as a negative control: the parser must complain."""
    bundle = write_bundle(tmp_path / "bundle", components=("unet", "denoise_step"), precision="fp16")
    step = bundle.graph("denoise_step")
    model = onnx.load(step, load_external_data=False)
    (cast,) = (node for node in model.graph.node if node.output[0] == "step.scaled_as_unet")
    for node in model.graph.node:
        node.input[:] = [cast.input[0] if name == cast.output[0] else name for name in node.input]
    model.graph.node.remove(cast)
    step.write_bytes(model.SerializeToString())
    (facts,) = parse(step)
    assert not facts["parsed"]
    assert facts["said"]


@pytest.mark.long
def test_exported_graphs(tiny_path: Path, store: Store) -> None:
    bundle = open_bundle(Source(checkpoint=str(tiny_path)), store, precision="fp16")
    unet, step = parse(bundle.graph("unet"), bundle.graph("denoise_step"))
    hold(bundle, unet, step)
    # The step is the UNet's layers and some sixty of its own.
    assert unet["layers"] + 20 < step["layers"] < unet["layers"] + 100


@pytest.mark.long
def test_exported_graphs_that_merge_tokens(tiny_path: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_path))
    parts: list[ComponentName] = ["unet"]
    bundle = export_bundle(checkpoint, tmp_path / "bundle", precision="fp16", components=parts, token_merging=0.5)
    hold(bundle, *parse(bundle.graph("unet"), bundle.graph("denoise_step")))
