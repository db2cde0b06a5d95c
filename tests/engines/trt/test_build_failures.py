"""Error messages made of the log where TensorRT builds nothing: real networks, and logs of other versions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx
from onnx import helper

from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import Component
from sdrt.engines.builders.tensorrt import TensorRtBuilder, TensorRtRtxBuilder
from sdrt.engines.trt.attention import attentions
from sdrt.errors import EngineError, ResourceError
from tests.engines.builders_trt import RECIPE, Heard, make_job
from tests.engines.graphs import FLOAT, HALF, attention_graph, write

MYELIN = (
    "Error Code: 9: Skipping tactic 0x0000000000000000 due to exception "
    "[myelin_graph.h:1075: attachExceptionMsgToGraph] MyelinCheckException: "
)
NO_IMPLEMENTATION = "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[a...b]}.)"
MEMORY = (
    "[W] Skipping tactic 0 due to insufficient memory on requested size of {} detected for tactic 0x0. "
    "Try decreasing the workspace size with IBuilderConfig::setMemoryPoolLimit()."
)
Log = Callable[[list[Any]], list[str]]


class Library:
    """TensorRT-RTX's builder, which fails with the log lines that a test returns for the attentions still fused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.builds = 0
        self.log: Log = lambda fused: []
        builds = tensorrt_rtx.Builder.build_serialized_network

        def build_serialized_network(builder: Any, network: Any, config: Any) -> Any:
            self.builds += 1
            fused = [each for each in attentions(module, network) if not each.decomposable]
            severities = tensorrt_rtx.ILogger.Severity
            lines = self.log(fused)
            for line in lines:
                severity = severities.WARNING if line.startswith("[W]") else severities.ERROR
                builder.logger.log(severity, line)
            return None if lines else builds(builder, network, config)

        module: Any = tensorrt_rtx
        monkeypatch.setattr(tensorrt_rtx.Builder, "build_serialized_network", build_serialized_network)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    return Library(monkeypatch)


def never(line: str) -> Log:
    return lambda fused: [line]


def build(tmp_path: Path, **recipe: Any) -> tuple[EngineComponent, list[str]]:
    """Build one attention of 32 in fp16, and return the notes."""
    return run(tmp_path, *attention_graph(tmp_path / "model.onnx", 32), **recipe)


def run(
    tmp_path: Path, graph: Path, spec: Component, rtx: bool = True, **recipe: Any
) -> tuple[EngineComponent, list[str]]:
    heard = Heard()
    kind = TensorRtRtxBuilder if rtx else TensorRtBuilder
    job = make_job(graph, spec, tmp_path / "set", recipe=RECIPE.model_copy(update=recipe))
    module: Any = tensorrt_rtx
    return kind(heard, module).build(job), heard.notes


def fused(built: EngineComponent) -> list[bool]:
    assert built.layers is not None
    return [attention.fused for attention in built.layers.attentions]


@pytest.mark.parametrize(
    "line",
    [
        NO_IMPLEMENTATION,
        MYELIN + "no kernel for fused Attention at decompose_composite_ops.cpp:59",
        MYELIN + "autotuner.cpp: attention unsupported",
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin (the_attention is not supported by a dedicated kernel)",
    ],
)
def test_an_attention_without_a_kernel_is_known_by_other_words_too(tmp_path: Path, library: Library, line: str) -> None:
    library.log = lambda marked_fused: [line] if marked_fused else []
    built, notes = build(tmp_path)
    assert fused(built) == [False]
    (note,) = notes
    assert "1 of 1 attentions have no kernel here and are decomposed" in note


def test_it_is_tried_once_with_all_attentions_marked(tmp_path: Path, library: Library) -> None:
    library.log = never(NO_IMPLEMENTATION)
    with pytest.raises(EngineError, match="Could not find any implementation") as caught:
        build(tmp_path)
    assert library.builds == 2
    assert "report it" in caught.value.hint


def test_what_has_no_attention_is_not_tried_again(tmp_path: Path, library: Library) -> None:
    node = helper.make_node("Sin", ["x"], ["y"])
    graph, spec = write(tmp_path / "model.onnx", [node], {"x": (FLOAT, ("batch", 4))}, {"y": (FLOAT, ("batch", 4))}, {})
    library.log = never(NO_IMPLEMENTATION)
    with pytest.raises(EngineError):
        run(tmp_path, graph, spec)
    assert library.builds == 1


def test_another_failure_decomposes_nothing(tmp_path: Path, library: Library) -> None:
    library.log = never("Error Code 4: Internal Error (network validation failed)")
    with pytest.raises(EngineError, match="network validation failed"):
        build(tmp_path)
    assert library.builds == 1


@pytest.mark.parametrize(("head_size", "dtype"), [(264, HALF), (512, HALF), (32, FLOAT), (160, FLOAT)])
def test_what_is_known_to_have_no_kernel_is_marked_at_once(
    tmp_path: Path, library: Library, head_size: int, dtype: int
) -> None:
    graph, spec = attention_graph(tmp_path / "model.onnx", head_size, dtype)
    built, notes = run(tmp_path, graph, spec)
    assert library.builds == 1
    assert fused(built) == [False]
    assert len(notes) == 1


@pytest.mark.parametrize("head_size", [16, 40, 64, 160, 256])
def test_what_has_a_kernel_is_fused(tmp_path: Path, library: Library, head_size: int) -> None:
    graph, spec = attention_graph(tmp_path / "model.onnx", head_size, HALF)
    built, notes = run(tmp_path, graph, spec)
    assert fused(built) == [True]
    assert notes == []


@pytest.mark.parametrize(("wanted_bytes", "mib"), [(1 << 30, 1024), ((1 << 30) + 1, 1025), (377_000_000, 360)])
def test_a_workspace_that_is_too_small_says_how_much_is_needed(
    tmp_path: Path, library: Library, wanted_bytes: int, mib: int
) -> None:
    library.log = lambda _: [MEMORY.format(1000), MEMORY.format(wanted_bytes), NO_IMPLEMENTATION]
    with pytest.raises(ResourceError, match="Could not find any implementation") as caught:
        build(tmp_path, workspace_mib=128)
    assert f"--set workspace_mib={mib} or more" in caught.value.hint
    assert library.builds == 1, "decomposed attentions take no less"


@pytest.mark.parametrize(
    "lines", [[MEMORY.format(1 << 34), NO_IMPLEMENTATION], ["Error Code 2: OutOfMemory (Requested size was 9 bytes.)"]]
)
def test_a_gpu_that_is_too_small_is_not_told_to_give_more_workspace(
    tmp_path: Path, library: Library, lines: list[str]
) -> None:
    library.log = lambda _: lines
    with pytest.raises(ResourceError) as caught:
        build(tmp_path, workspace_mib=None)
    assert "fewer pictures" in caught.value.hint
    assert "workspace" not in caught.value.hint
    assert (str(1 << 34) in caught.value.hint) is (len(lines) == 2)


@pytest.mark.parametrize("limit", [None, 256])
def test_the_workspace_is_limited_by_a_recipe_alone(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    limits: list[tuple[Any, int]] = []
    monkeypatch.setattr(
        tensorrt_rtx.IBuilderConfig, "set_memory_pool_limit", lambda config, pool, size: limits.append((pool, size))
    )
    build(tmp_path, workspace_mib=limit)
    assert limits == ([] if limit is None else [(tensorrt_rtx.MemoryPoolType.WORKSPACE, limit << 20)])


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"hardware_compatibility": "same_compute_capability"}, "--set hardware_compatibility=none"),
        ({"hardware_compatibility": "ampere_plus"}, "--set hardware_compatibility=none"),
        ({"hardware_compatibility": "ampere_plus", "version_compatible": True}, "--set hardware_compatibility=none"),
        ({"version_compatible": True}, "--set version_compatible=false"),
        ({}, "another --recipe"),
    ],
)
def test_what_the_compiler_refuses_says_which_setting_to_leave_out(
    tmp_path: Path, library: Library, monkeypatch: pytest.MonkeyPatch, recipe: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr("sdrt.engines.builders.tensorrt.TensorRtBuilder._timing_cache", lambda builder, job: None)
    library.log = never(MYELIN + "In HCCC mode, but a kernel is not")
    with pytest.raises(EngineError, match="MyelinCheckException") as caught:
        build(tmp_path, rtx=False, **recipe)
    assert named in caught.value.hint
    assert "targets" not in caught.value.hint
