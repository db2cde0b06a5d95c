"""The names of TensorRT that the code uses, checked against 10.16, 11.4 and TensorRT-RTX 1.7.

tests/engines/tensorrt_api holds the classes, enum values and signatures read off the real bindings of each.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from sdrt.engines.recipe import Compatibility, Target
from sdrt.engines.trt.layers import PRECISIONS
from sdrt.libraries.tensorrt import Library

ROOT = Path(__file__).parents[2]
VERSIONS = ("10.16", "11.4", "rtx-1.7")
API: dict[str, dict[str, Any]] = {
    version: json.loads((Path(__file__).parent / "tensorrt_api" / f"{version}.json").read_text())
    for version in VERSIONS
}
FILES = [
    ROOT / "sdrt/engines/builders/tensorrt.py",
    *sorted((ROOT / "sdrt/engines/trt").glob("*.py")),
    *sorted((ROOT / "sdrt/runtime/backends").glob("tensorrt*.py")),
]
#: The code's names for TensorRT's objects in the builder's files; their attributes are TensorRT's.
OBJECTS = {
    "builder": "Builder",
    "self._builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "definition": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "errors[0]": "ParserError",
    "profile": "IOptimizationProfile",
    # Cast down where it is an attention's output.
    "layer": "ILayer|IAttentionOutputLayer",
    "attention": "IAttention",
    "query": "ITensor",
    "key": "ITensor",
    "tensor": "ITensor",
    "self._context": "IExecutionContext",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
}
#: In the runtime's files some of the names mean other objects.
RUNTIME_OBJECTS = {
    "self._context": "IExecutionContext",
    "self._runtime": "Runtime",
    "config": "IRuntimeConfig",
    "self._config": "IRuntimeConfig",
    "self._cache": "IRuntimeCache",
}
#: Names that only TensorRT-RTX has; sdrt/engines/trt/config.py and the runtime use them there only.
RTX_ONLY = {
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("BuilderFlag", "REQUIRE_USER_ALLOCATION"),
    ("trt", "ComputeCapability"),
    ("trt", "CudaGraphStrategy"),
    ("trt", "DynamicShapesKernelSpecializationStrategy"),
    ("IRuntimeConfig", "cuda_graph_strategy"),
    ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
    ("IRuntimeConfig", "create_runtime_cache"),
    ("IRuntimeConfig", "set_runtime_cache"),
    ("IRuntimeCache", "deserialize"),
    ("IRuntimeCache", "serialize"),
    ("IExecutionContext", "is_stream_capturable"),
}
#: Attributes of the module itself, in every version.
OF_MODULES = {"__name__", "__version__"}
#: A Severity is an ILogger's attribute and an enum of its own.
SEVERITIES = {"INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"}


def missing(source: str, version: str, objects: dict[str, str]) -> list[str]:
    """List names that a source uses and a version lacks."""
    api = API[version]
    return [
        f"{owner}.{name}"
        for owner, name in uses(ast.parse(source), objects)
        if not has(api, owner, name) and not ((owner, name) in RTX_ONLY and version != "rtx-1.7")
    ]


def uses(tree: ast.AST, objects: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (class or "trt", attribute) of every use."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        module = re.fullmatch(r"(?:self\.)?(?:_?device\.|_?)?trt", owner)
        member = re.fullmatch(r"(?:self\.)?(?:_?device\.|_?)?trt\.(\w+(?:\.Severity)?)", owner)
        if module and node.attr not in OF_MODULES:
            yield "trt", node.attr
        elif member and node.attr != "__init__":
            yield member[1], node.attr
        elif owner in objects and not node.attr.startswith("__"):
            yield objects[owner], node.attr


def has(api: dict[str, Any], owner: str, name: str) -> bool:
    """Return whether a version has a class, or a class an attribute or enum value."""
    if owner == "trt":
        return name in api
    if owner == "ILogger.Severity":
        return name in SEVERITIES
    if "|" in owner:
        return any(has(api, each, name) for each in owner.split("|"))
    if owner not in api and owner != "IRuntimeCache":
        # Only an object that a version lacks, by an allowed exception, may have no attributes there.
        return ("trt", owner) in RTX_ONLY
    return name in api.get(owner, {}).get("enum", ()) or name in api.get(owner, {}).get("attrs", ())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_name_is_in_every_version(path: Path, version: str) -> None:
    objects = RUNTIME_OBJECTS if "runtime" in path.parts else OBJECTS
    assert missing(path.read_text(), version, objects) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_typed_of_the_module_is_in_every_version(version: str) -> None:
    names = {name for name in Library.__annotations__ if not name.startswith("__")}
    assert {name for name in names if ("trt", name) not in RTX_ONLY or version == "rtx-1.7"} <= set(API[version])
    assert "OnnxParser" in names


def test_the_code_is_seen() -> None:
    seen = {use for path in FILES for use in uses(ast.parse(path.read_text()), OBJECTS)}
    for use in (
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "set_memory_pool_limit"),
        ("OnnxParser", "parse_from_file"),
        ("IAttention", "decomposable"),
        ("IOptimizationProfile", "set_shape"),
        ("ParserError", "node_operator"),
        ("INetworkDefinition", "add_attention"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("MemoryPoolType", "WORKSPACE"),
    ):
        assert use in seen


@pytest.mark.parametrize(
    ("source", "version"),
    [
        ("config.set_flag(trt.BuilderFlag.FP16)", "11.4"),
        ("builder.platform_has_fast_fp16", "rtx-1.7"),
        ("parser.supports_model(b'')", "11.4"),
        ("network.add_plugin_v3", "rtx-1.7"),
        ("builder.invented()", "10.16"),
        ("trt.Invented", "10.16"),
        ("config.set_compute_capability", "none of them"),
    ],
)
def test_a_name_that_a_version_lacks_is_found(source: str, version: str) -> None:
    if version == "none of them":
        assert missing(source, "10.16", OBJECTS) == []
        return
    assert missing(source, version, OBJECTS)


@pytest.mark.parametrize("version", VERSIONS)
def test_names_made_from_recipes_exist(version: str) -> None:
    assert {level.upper() for level in get_args(Compatibility)} == set(
        API[version]["HardwareCompatibilityLevel"]["enum"]
    )
    assert set(PRECISIONS) <= set(API[version]["DataType"]["enum"])


def test_every_target_is_one_of_rtx() -> None:
    known = set(API["rtx-1.7"]["ComputeCapability"]["enum"]) - {"NONE", "CURRENT"}
    assert {target.upper() for target in get_args(Target)} == known


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("base", "file"),
    [("IProgressMonitor", "engines/trt/monitor.py"), ("ILogger", "libraries/tensorrt_log.py")],
)
def test_overridden_methods_have_the_parameters_of_the_bindings(version: str, base: str, file: str) -> None:
    signatures = API[version][base]["signatures"]
    tree = ast.parse((ROOT / "sdrt" / file).read_text())
    methods = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    overridden = signatures.keys() & methods.keys()
    assert overridden == set(signatures)
    for name in overridden:
        wanted = re.findall(r"(\w+): ", signatures[name].partition("(")[2])
        assert [argument.arg for argument in methods[name].args.args] == wanted


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_have_as_many_arguments_as_the_signature_takes(version: str) -> None:
    counted = 0
    for path in FILES:
        if "runtime" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = OBJECTS.get(ast.unparse(node.func.value))
            signature = API[version].get(owner or "", {}).get("signatures", {}).get(node.func.attr)
            # Overloads are listed without their parameters.
            if (
                signature is None
                or "self: " not in signature
                or any(isinstance(argument, ast.Starred) for argument in node.args)
            ):
                continue
            parameters = re.findall(r"(\w+): ", signature.partition("(")[2])[1:]
            optional = len(re.findall(r" = ", signature))
            assert node.keywords == []
            assert len(parameters) - optional <= len(node.args) <= len(parameters), ast.unparse(node)
            counted += 1
    assert counted > 10
