"""The torch interpreter of exported graphs against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName
from tests.engines.graphs import OPERATORS as EXPORTED
from tests.engines.graphs import every_operator
from tools.gpu_day import torch_graph
from tools.gpu_day.torch_graph import OPERATORS, TorchGraph

#: Relative L2. fp16 keeps 11 bits, and the two round at different operators: 2e-4 to 8e-4 on the demo's graphs. fp32
#: adds in another order: 6e-6 over the VAE's layers.
TOLERANCES = {"float16": 2e-3, "float32": 5e-5}


def differences(path: Path, batch: int) -> dict[str, float]:
    """Return the difference of torch's and ONNX Runtime's outputs, by name."""
    rng = np.random.default_rng(0)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {}
    for value in session.get_inputs():
        shape = [batch if isinstance(axis, str) else axis for axis in value.shape]
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        feeds[value.name] = (
            rng.integers(0, 50, shape) if "int64" in value.type else rng.random(shape).astype(kinds[value.type])
        )
    names = [value.name for value in session.get_outputs()]
    wanted = dict(zip(names, session.run(names, feeds), strict=True))
    found = TorchGraph(path, "cpu")(**{name: torch.from_numpy(array) for name, array in feeds.items()})
    assert {name: array.shape for name, array in wanted.items()} == {n: tuple(t.shape) for n, t in found.items()}
    return {
        name: float(np.linalg.norm((found[name].double().numpy() - wanted[name]).ravel()))
        / float(np.linalg.norm(wanted[name].astype(np.float64).ravel()))
        for name in names
    }


def test_every_operator_of_exported_graphs_is_there() -> None:
    assert EXPORTED - {"Cast"} <= OPERATORS.keys()


@pytest.mark.parametrize("batch", [1, 3])
def test_every_operator_agrees_in_fp16(tmp_path: Path, batch: int) -> None:
    path, _ = every_operator(tmp_path)
    assert all(error < TOLERANCES["float16"] for error in differences(path, batch).values())


@pytest.mark.parametrize("component", ["text_encoder", "denoise_step", "vae_decoder"])
def test_exported_graphs_agree(tiny_bundle: Bundle, component: ComponentName) -> None:
    path = tiny_bundle.graph(component)
    assert all(error < TOLERANCES["float32"] for error in differences(path, 1).values())


def test_a_wrong_operator_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(torch_graph.OPERATORS, "Gelu", lambda node, given: torch.relu(given[0]))
    path, _ = every_operator(tmp_path)
    assert max(differences(path, 1).values()) > 3 * TOLERANCES["float16"]


def test_what_fp16_rounds_shows_beside_fp32(tmp_path: Path) -> None:
    path, _ = every_operator(tmp_path)
    seen: set[str] = set()
    exact = TorchGraph(path, "cpu", half=torch.float32, watch=lambda node, outputs, given: seen.add(node.op_type))
    half = TorchGraph(path, "cpu")
    feeds = {
        name: torch.ones(2, *[axis.dim_value for axis in kind.shape.dim][1:]) for name, kind in half.inputs.items()
    }
    feeds["input_ids"] = feeds["input_ids"].long()
    rounded = half(**{name: value.half() if name == "sample" else value for name, value in feeds.items()})
    whole = exact(**feeds)
    assert seen == EXPORTED
    error = (rounded["states"].float() - whole["states"]).norm() / whole["states"].norm()
    assert 1e-5 < error < TOLERANCES["float16"]


def _lengths(kind: Any) -> list[int]:
    return [axis.dim_value for axis in kind.shape.dim][1:]
