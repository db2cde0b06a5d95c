"""Allowed imports: the runtime without torch and its libraries, the package and its help with almost none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sdrt
from sdrt.install_lines import extra_line

SOURCE = Path(sdrt.__file__).parent
#: Packages that a deployment does not install: see the extras in pyproject.toml.
ABSENT = (
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "safetensors",
    "huggingface_hub",
    "matplotlib",
)
#: Modules that need an extra.
NEED_TORCH = (
    *(
        f"sdrt.export.{name}"
        for name in ("activations", "bundle_export", "check", "components", "flops", "onnx_export", "token_merging")
    ),
    "sdrt.checkpoint.modules",
    "sdrt.compare.reference",
    "sdrt.compare.compare",
    "sdrt.bench.peers.torch_diffusers",
)
#: A time limit would measure the machine, so this counts loaded modules.
HEAVY = ("numpy", "onnxruntime", "openvino", "pydantic", "PIL", "tokenizers", "rich", "filelock", "platformdirs")

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter where packages that a deployment lacks cannot be imported."""
    words = [sys.executable, "-W", "error", "-c", BLOCKER.format(absent=ABSENT) + code, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def modules() -> list[str]:
    paths = [path for path in SOURCE.rglob("*.py") if path.name != "__main__.py" and "assets" not in path.parts]
    names = (path.relative_to(SOURCE.parent).with_suffix("").as_posix().replace("/", ".") for path in paths)
    return sorted(name.removesuffix(".__init__") for name in names)


def runtime_modules() -> list[str]:
    return [name for name in modules() if not name.startswith(NEED_TORCH)]


def test_every_runtime_module_imports_without_torch() -> None:
    names = runtime_modules()
    assert len(names) > 40
    ended = python(f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("name", NEED_TORCH)
def test_the_blocker_blocks(name: str) -> None:
    ended = python(f"import {name}")
    assert ended.returncode != 0
    assert "ModuleNotFoundError: No module named" in ended.stderr


def test_help_and_version_need_nothing() -> None:
    for word in ("--help", "--version"):
        ended = python("from sdrt.cli import main; main(sys.argv[1:])", word)
        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == ""


def test_export_without_torch_says_what_to_install(tiny_path: Path, tmp_path: Path) -> None:
    code = "from sdrt.cli import main; main(sys.argv[1:])"
    ended = python(code, "export", "--checkpoint", str(tiny_path), "--out", str(tmp_path / "bundle"))
    assert ended.returncode == 4, ended.stderr
    assert extra_line("export") in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


def loaded_by(code: str) -> set[str]:
    ended = python(code + "\nprint(*{name.partition('.')[0] for name in sys.modules})")
    assert ended.returncode == 0, ended.stderr
    return set(ended.stdout.splitlines()[-1].split())


def test_importing_the_package_loads_none_of_its_libraries() -> None:
    assert not loaded_by("import sdrt") & {*HEAVY, "click"}


def test_showing_the_help_loads_none_of_its_libraries() -> None:
    help_shown = "from sdrt import cli\nassert cli._run(['--help']) == 0"
    assert not loaded_by(help_shown) & set(HEAVY)


def test_the_count_of_libraries_sees_one() -> None:
    assert "numpy" in loaded_by("import numpy")


def test_the_pipeline_is_found_where_the_readme_says() -> None:
    code = "from sdrt import Pipeline, Result\nassert Pipeline.__module__ == 'sdrt.pipeline', Pipeline"
    assert python(code).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        _ = sdrt.Pipelines
