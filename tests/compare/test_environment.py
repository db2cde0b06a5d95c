"""The environment stands beside the numbers: threads, GPUs, their driver, and ONNX Runtime's provider."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdrt.artefacts.bundle import Bundle
from sdrt.checkpoint import open_checkpoint
from sdrt.compare import compare as comparing
from sdrt.compare.compare import environment
from sdrt.compare.runners import candidate
from sdrt.compare.subject import Subject
from sdrt.machine.cpu import usable_cpus


@pytest.fixture
def subject(tiny_bundle: Bundle, tiny_path: Path) -> Subject:
    """Return the tiny bundle's graphs."""
    record = tiny_bundle.manifest.checkpoint
    checkpoint = open_checkpoint(str(tiny_path))
    return Subject(candidate(tiny_bundle), None, None, tiny_bundle, record, checkpoint, tiny_bundle.digest)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the driver; tests may change it."""
    found: dict[str, Any] = {"driver": None, "problem": "there is no driver"}
    monkeypatch.setattr(comparing, "gpu", lambda: found)
    return found


@pytest.mark.usefixtures("driver")
def test_threads_are_named(subject: Subject) -> None:
    assert environment(subject, 3)["threads"] == f"3; torch {torch.get_num_threads()}"
    assert environment(subject, None)["threads"].split(";")[0] == str(usable_cpus())


def test_a_gpu_and_its_driver_are_named(subject: Subject, driver: dict[str, Any]) -> None:
    facts = environment(subject, None)
    assert facts["gpu"] == "none"
    assert "driver" not in facts
    driver.update(
        driver="580.65", cuda="13.0", gpus=[{"name": "NVIDIA H100", "architecture": "sm90", "memory_bytes": 1}]
    )
    facts = environment(subject, None)
    assert facts["gpu"] == "NVIDIA H100 (sm90)"
    assert facts["driver"] == "580.65, CUDA 13.0"


@pytest.mark.usefixtures("driver")
def test_onnx_runtimes_provider_is_named(subject: Subject) -> None:
    assert environment(subject, None)["provider"] == "cpu"
    part = subject.made.parts["unet"].model_copy(update={"options": {"provider": "cuda"}})
    there = replace(subject, made=replace(subject.made, parts={"unet": part}))
    assert environment(there, None)["provider"] == "cuda"
    other = replace(subject, made=replace(subject.made, backend="openvino"))
    assert "provider" not in environment(other, None)
