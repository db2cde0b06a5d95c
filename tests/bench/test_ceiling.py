from __future__ import annotations

from typing import Any

import pytest

from sdrt.bench import ceiling
from sdrt.bench.ceiling import MachineCeiling


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the measured products and copies so that they take no time."""
    monkeypatch.setattr(ceiling, "SIDE", 64)
    monkeypatch.setattr(ceiling, "COPY_BYTES", 1 << 16)


def test_every_precision_that_anything_computes_in_has_a_limit(small: None) -> None:
    found = MachineCeiling(1, "cpu").measure(("fp32", "bf16", "int8", "fp16"))
    # On a CPU every library here converts fp16 before it multiplies.
    assert set(found["products"]) == {"fp32", "bf16", "int8"}
    assert found["products"]["fp32"]["library"] in ("torch", "openvino", "numpy")
    assert all(each["gflops"] > 0 for each in found["products"].values())
    assert found["bytes_a_second"] > 0


def test_the_fastest_library_counts(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"torch": 2.0, "openvino": 1.0, "numpy": 4.0}

    def maker(name: str) -> Any:
        return lambda *_: lambda: name

    for name in seconds:
        monkeypatch.setattr(ceiling, f"_{name}", maker(name))
    monkeypatch.setattr(ceiling, "_best", lambda function: seconds.get(function(), 1.0))
    found = MachineCeiling(1, "cpu").measure(("fp32",))["products"]["fp32"]
    assert found == {"gflops": 2 * 64**3 / 1e9, "library": "openvino"}


def test_a_library_that_is_not_installed_is_left_out(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("no such library")

    for name in ("_torch", "_openvino"):
        monkeypatch.setattr(ceiling, name, missing)
    found = MachineCeiling(1, "cpu").measure(("fp32", "bf16"))
    assert found["products"]["fp32"]["library"] == "numpy"
    assert "bf16" not in found["products"]
