"""The components before export: the full-size model's counts, and the checks of a graph against its module."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdrt.arrays import relative_l2
from sdrt.checkpoint import open_checkpoint
from sdrt.checkpoint.clip_vocabulary import SD_V1
from sdrt.errors import BundleError, CheckpointError, NumericError
from sdrt.export.check import TOLERANCES, check_graph
from sdrt.export.components import TorchComponent, UNet, load_component, model_record
from sdrt.export.flops import count_flops
from sdrt.export.onnx_export import export_graph, tensor_specs

SHAPE = (4, 8, 8)


def small_component(module: torch.nn.Module) -> TorchComponent:
    """Return a component over any module that takes and returns latents."""
    module.eval().requires_grad_(False)
    return TorchComponent("vae_decoder", module, {"latent_sample": (None, SHAPE)}, ("sample", SHAPE))


class Convolution(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.convolution(latent_sample)
        return out


class FixesTheBatch(torch.nn.Module):
    """Splits the batch in two: torch.export silently fixes it to the example's."""

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        first, second = latent_sample.chunk(2)
        return torch.cat([second, first])


class WrongShape(Convolution):
    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return super().forward(latent_sample).flatten(2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchComponent, Path]:
    component, path = small_component(Convolution()), tmp_path_factory.mktemp("graphs") / "model.onnx"
    export_graph(component, path, torch.float32, 23)
    return component, path


def test_a_sound_graph_passes(exported: tuple[TorchComponent, Path]) -> None:
    component, path = exported
    assert check_graph(component, path, torch.float32, "fp32") < TOLERANCES["fp32"] / 10
    assert tensor_specs(path)[0][0].shape == ("batch", *SHAPE)


@pytest.mark.parametrize("change", [1.01, float("nan")])
def test_a_graph_that_differs_from_its_module_fails(exported: tuple[TorchComponent, Path], change: float) -> None:
    _, path = exported
    perturbed = Convolution()
    with torch.no_grad():
        perturbed.convolution.weight[0, 0] *= change
    with pytest.raises(NumericError, match="vae_decoder: the exported graph differs from torch"):
        check_graph(small_component(perturbed), path, torch.float32, "fp32")


def test_a_shape_outside_the_contract_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the exported sample has shape \('batch', 4, 64\)"):
        export_graph(small_component(WrongShape()), tmp_path / "model.onnx", torch.float32, 23)


def test_a_batch_that_the_exporter_fixed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has shape \(2, 4, 8, 8\); expected \('batch', 4, 8, 8\)"):
        export_graph(small_component(FixesTheBatch()), tmp_path / "model.onnx", torch.float32, 23)


def test_a_shape_beside_the_contract_is_refused(tmp_path: Path) -> None:
    component = replace(small_component(Convolution()), output=("sample", (4, 8, 9)))
    with pytest.raises(BundleError, match=r"expected \('batch', 4, 8, 9\)"):
        export_graph(component, tmp_path / "model.onnx", torch.float32, 23)


def test_relative_l2() -> None:
    expected = np.array([3.0, 4.0])
    assert relative_l2(expected, expected) == 0
    assert relative_l2(np.array([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert relative_l2(expected, np.zeros(2)) > 1e20


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ([np.nan], [np.nan]),
        ([np.inf], [np.inf]),
        ([np.nan], [1.0]),
        ([1.0], [np.nan]),
        ([1.0, 1.0], [[1.0, 1.0]]),
        ([1.0], [1.0, 1.0]),
        ([], []),
    ],
)
def test_what_cannot_be_compared_never_passes(actual: list[float], expected: list[float]) -> None:
    assert relative_l2(np.array(actual), np.array(expected)) == float("inf")


def test_the_full_size_unet_has_its_known_counts() -> None:
    """Expect 859,520,964 parameters and 0.803 TFLOP a pass and sample (401.6 GMAC)."""
    from diffusers import UNet2DConditionModel

    config = json.loads((SD_V1 / "unet" / "config.json").read_bytes())
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config).eval()
    hidden = (77, config["cross_attention_dim"])
    inputs = {
        "sample": (None, (4, 64, 64)),
        "timestep": (torch.float32, ()),
        "encoder_hidden_states": (None, hidden),
    }
    component = TorchComponent("unet", UNet(unet), inputs, ("out_sample", (4, 64, 64)))
    assert sum(parameter.numel() for parameter in component.module.parameters()) == 859_520_964
    assert count_flops(component) / 1e12 == pytest.approx(0.803, abs=5e-4)


def test_model_record_takes_a_size_of_either_form(tiny_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_path))
    pair = replace(checkpoint, unet={**checkpoint.unet, "sample_size": [64, 64]})
    assert model_record(pair) == model_record(checkpoint)


def test_examples_are_seeded_and_fractional(tiny_path: Path) -> None:
    component = load_component(open_checkpoint(str(tiny_path)), "unet")
    first, again = (component.example(3, torch.float16, seed=1) for _ in range(2))
    assert {name: value.dtype for name, value in first.items()} == {
        "sample": torch.float16,
        "timestep": torch.float32,
        "encoder_hidden_states": torch.float16,
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert (first["timestep"] % 1 != 0).all()
    assert not any(parameter.requires_grad for parameter in component.module.parameters())
    assert not component.module.training


def test_what_is_no_component_is_refused(tiny_path: Path) -> None:
    with pytest.raises(CheckpointError, match="denoise_step is not a component"):
        load_component(open_checkpoint(str(tiny_path)), "denoise_step")
