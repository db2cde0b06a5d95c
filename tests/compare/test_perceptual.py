"""LPIPS over a double of its package: missing, unreachable, and loaded with AlexNet's weights by name."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sdrt.compare import perceptual
from sdrt.errors import NumericError
from sdrt.install_lines import extra_line


class Fetch:
    """Stands in for the download of AlexNet's weights; records its arguments."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, url: str, **options: Any) -> Any:
        self.asked.append((url, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install doubles of the used packages: a distance of one number a layer."""
    import torch

    class Slices(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slice1, self.slice2 = torch.nn.Module(), torch.nn.Module()
            self.slice1.add_module("0", torch.nn.Conv2d(3, 1, 1, bias=False))
            self.slice2.add_module("3", torch.nn.Conv2d(1, 1, 1, bias=False))

    class Network(torch.nn.Module):
        def __init__(self, *, net: str, pnet_rand: bool, verbose: bool) -> None:
            super().__init__()
            assert (net, pnet_rand, verbose) == ("alex", True, False)
            self.net = Slices()

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            assert first.shape == second.shape == (1, 3, 8, 8)
            assert first.min() >= -1
            assert second.max() <= 1
            distance = (first - second).abs().mean()
            for weight in self.net.parameters():
                distance = distance * weight.sum()
            return distance

    models = ModuleType("torchvision.models")
    models.AlexNet_Weights = SimpleNamespace(IMAGENET1K_V1=SimpleNamespace(url="alexnet-7be5be79.pth"))  # type: ignore[attr-defined]
    lpips = ModuleType("lpips")
    lpips.LPIPS = Network  # type: ignore[attr-defined]
    for module in (models, lpips, ModuleType("torchvision")):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(perceptual, "find_spec", lambda _: object())
    monkeypatch.setattr(perceptual, "version", lambda _: "0.1.4")


def weights(value: float) -> dict[str, Any]:
    import torch

    return {"features.0.weight": torch.full((1, 3, 1, 1), value), "features.3.weight": torch.full((1, 1, 1, 1), 0.5)}


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "find_spec", lambda _: None)
    assert perceptual.open_lpips() == (None, f"not measured: {extra_line('lpips')}")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("invalid hash value")])
def test_weights_that_cannot_be_had_are_said(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", Fetch(error))
    found, about = perceptual.open_lpips()
    assert found is None
    assert about == f"not measured: AlexNet's weights cannot be fetched ({type(error).__name__})"


@pytest.mark.usefixtures("installed")
def test_it_measures_with_the_fetched_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = Fetch(weights(2.0))
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    found, about = perceptual.open_lpips()
    assert found is not None
    assert about == "0.1.4, AlexNet"
    assert fetch.asked == [("alexnet-7be5be79.pth", {"progress": False, "check_hash": True, "weights_only": True})]
    white, black = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8))
    assert found(white, white) == 0
    # Black and white are 2 apart in -1..1; the weights sum to 3 times 2 and 0.5.
    assert found(white, black) == pytest.approx(2 * 6 * 0.5)


@pytest.mark.usefixtures("installed")
def test_what_is_not_finite_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", Fetch(weights(float("nan"))))
    found, _ = perceptual.open_lpips()
    assert found is not None
    with pytest.raises(NumericError, match="LPIPS is nan"):
        found(Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white"))
