"""The stubs of TensorRT-RTX agree with its bindings, and mypy finds wrong calls by them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api

from tests.stubs.generate import OUT, stub

ROOT = Path(__file__).parents[2]
PLANTED = """
from sdrt.libraries.tensorrt import Library

def build(trt: Library, graph: str) -> None:
    builder = trt.Builder(trt.ILogger())
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 20)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 4), (2, 4), (3, 4))
    parser = trt.OnnxParser(network, trt.ILogger())
    parser.parse_from_file(graph)
    plan = builder.build_serialized_network(network, config)
    if plan is not None:
        memoryview(plan)
"""
#: Text, its replacement, and mypy's error.
WRONG = {
    "keyword": ("(network, config)", "(network, configuration=config)", 'Unexpected keyword argument "configuration"'),
    "type": ("(network, config)", "(config, network)", "incompatible type"),
    "name": ("parse_from_file", "parse_file", 'has no attribute "parse_file"'),
    "value": ("STRONGLY_TYPED", "EXPLICIT_BATCH", 'has no attribute "EXPLICIT_BATCH"'),
    "None": ("    if plan is not None:\n        ", "    ", 'incompatible type "IHostMemory | None"'),
}


def test_the_stubs_are_those_of_the_installed_bindings() -> None:
    # Run python -m tests.stubs.generate after an upgrade, and read what changed.
    assert OUT.read_text() == stub()


def test_no_signature_that_our_code_calls_is_unread() -> None:
    unread = set(re.findall(r"def (\w+)\([^)]*\*args: Any, \*\*kwargs: Any\)", OUT.read_text()))
    called = {
        name
        for path in (ROOT / "sdrt" / "engines").rglob("*.py")
        for name in re.findall(r"\.(\w+)\(", path.read_text())
    }
    assert called & unread == set()
    assert "build_serialized_network" in called


@pytest.fixture(scope="module")
def complaints(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return mypy's errors on the planted faults, each in its own file, and on a file without one."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted_nothing.py").write_text(PLANTED)
    for name, (right, wrong, _) in WRONG.items():
        assert right in PLANTED
        (folder / f"planted_{name}.py").write_text(PLANTED.replace(right, wrong))
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(folder / "cache")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        said, problems, _ = api.run([*config, *map(str, sorted(folder.glob("*.py")))])
    assert problems == ""
    return said


def test_right_calls_pass(complaints: str) -> None:
    assert "planted_nothing" not in complaints


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_fault_is_found(complaints: str, name: str) -> None:
    lines = [line for line in complaints.splitlines() if f"planted_{name}.py" in line and ": error: " in line]
    assert lines
    assert all(WRONG[name][2] in line for line in lines)
