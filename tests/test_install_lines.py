"""Every line that sdrt prints or documents to install something works where it is printed."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sdrt import doctor, install_lines
from sdrt.bench import plan
from sdrt.install_lines import clone_root, extra_line, package_line, removal_line, requirement_line, requirements
from sdrt.machine import packages
from sdrt.runtime.backends.tensorrt import _MODULES

ROOT = Path(install_lines.__file__).parents[1]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
#: Packages that sdrt installs by name: no extra contains them.
PEERS = {"openvino-genai", "stable-diffusion-cpp-python"}
#: History, licences of others, and files fetched by tools.
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("sdrt/assets/**/*.md")])
PAGES.remove(ROOT / "CHANGELOG.md")


@pytest.fixture(params=["clone", "wheel"])
def situation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put sdrt in a clone, or install it from a wheel, whose metadata lists its extras' requirements."""
    if request.param == "wheel":
        as_wheel(monkeypatch)
    return str(request.param)


def as_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put sdrt in a folder without pyproject.toml, with the metadata that hatchling writes."""
    listed = ["click>=8.1", *(f"{wanted}; extra == '{extra}'" for extra, each in EXTRAS.items() for wanted in each)]
    monkeypatch.setattr(install_lines, "__file__", "/nowhere/site-packages/sdrt/install_lines.py")
    monkeypatch.setattr(install_lines, "requires", lambda _: listed)


def words_of(line: str) -> list[str]:
    """Return the words after pip's action, of a line that calls the running Python's pip."""
    words = shlex.split(line)
    assert words[1:3] == ["-m", "pip"]
    assert Path(words[0]).absolute() == Path(sys.executable)
    return words[3:]


def installed_by(line: str) -> set[str]:
    """Return the packages that a line installs; assert that its extras exist and its packages parse."""
    action, *words = words_of(line)
    assert action == "install"
    if words[0] == "--editable":
        (place,) = words[1:]
        found = re.fullmatch(r"(.+)\[([a-z,]+)\]", place)
        assert found is not None
        assert Path(found[1]).resolve() == ROOT
        words = [wanted for extra in found[2].split(",") for wanted in EXTRAS[extra]]
    assert words
    return {Requirement(word).name for word in words}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_line_of_an_extra_brings_what_it_asks_for(extra: str, situation: str) -> None:
    line = extra_line(extra)
    assert installed_by(line) == {Requirement(wanted).name for wanted in EXTRAS[extra]}
    assert ("--editable" in line) == (situation == "clone")
    assert len(line.splitlines()) == 1
    for wanted in EXTRAS[extra]:
        name = Requirement(wanted).name
        assert words_of(requirement_line(name, extra=extra)) == ["install", wanted]


def test_extras_are_installed_together_and_once(situation: str) -> None:
    line = extra_line("plot", "rtx")
    assert installed_by(line) == {"matplotlib", "onnx", "tensorrt-rtx", "cuda-bindings"}
    assert line.count("onnx") == (0 if situation == "clone" else 1)


def test_what_does_not_exist_is_a_fault_of_ours(situation: str) -> None:
    with pytest.raises(ValueError, match="no extra ghost"):
        extra_line("cpu", "ghost")
    with pytest.raises(ValueError, match="torch is not in the extra cpu"):
        requirement_line("torch", extra="cpu")


def test_names_are_compared_as_indexes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    as_wheel(monkeypatch)
    monkeypatch.setattr(install_lines, "requires", lambda _: ["huggingface-hub>=1.0; extra == 'export'"])
    assert words_of(requirement_line("huggingface_hub", extra="export")) == ["install", "huggingface-hub>=1.0"]


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        ("a>=1,<2; extra == 'x'", "a>=1,<2"),
        ('a ; extra == "x"', "a"),
        ("a[b]>=1; python_version >= '3.12' and extra == 'x'", "a[b]>=1; python_version >= '3.12'"),
        ("a; extra == 'x' and sys_platform == 'linux'", "a; sys_platform == 'linux'"),
    ],
)
def test_markers_of_the_metadata_are_read(listed: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_wheel(monkeypatch)
    monkeypatch.setattr(install_lines, "requires", lambda _: ["c", "b; extra == 'xy'", listed, "d; extra == 'y'"])
    assert requirements("x") == (wanted,)
    assert words_of(extra_line("x")) == ["install", wanted]
    assert Requirement(wanted).name == "a"


def test_metadata_of_the_installed_package_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vars(install_lines)["requires"] is importlib.metadata.requires
    assert clone_root() == ROOT
    monkeypatch.setattr(install_lines, "__file__", "/nowhere/site-packages/sdrt/install_lines.py")
    assert clone_root() is None


def test_where_there_is_no_metadata_either_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    as_wheel(monkeypatch)
    monkeypatch.setattr(install_lines, "requires", absent)
    assert extra_line("cpu", "plot") == "install sdrt by pip, with cpu, plot"
    assert words_of(requirement_line("onnx", extra="plot")) == ["install", "onnx"]


@pytest.mark.parametrize("text", ["", "not TOML =", "[project]\nname = 'another'", "[tool.x]\na = 1"])
def test_the_pyproject_of_another_makes_no_clone(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    monkeypatch.setattr(install_lines, "__file__", str(tmp_path / "sdrt" / "install_lines.py"))
    assert clone_root() is None


def test_lines_are_short_in_the_clone_and_whole_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tmp_path / "my clone"
    (clone / "sdrt").mkdir(parents=True)
    (clone / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(install_lines, "__file__", str(clone / "sdrt" / "install_lines.py"))
    monkeypatch.setattr(sys, "executable", str(clone / ".venv/bin/python"))
    monkeypatch.chdir(clone)
    assert extra_line("trt") == ".venv/bin/python -m pip install --editable '.[trt]'"
    monkeypatch.chdir(tmp_path)
    assert extra_line("trt") == "'my clone/.venv/bin/python' -m pip install --editable './my clone[trt]'"
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert extra_line("trt") == f"usr/bin/python3 -m pip install --editable {shlex.quote(f'{clone}[trt]'[1:])}"


def test_a_folder_that_is_gone_stops_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert installed_by(package_line("onnx>=1.20")) == {"onnx"}


def test_without_pip_it_is_uvs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_lines, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "executable", "/opt/python")
    monkeypatch.chdir("/tmp")
    assert package_line("a>=1") == "uv pip install --python /opt/python 'a>=1'"
    assert removal_line("a") == "uv pip uninstall --python /opt/python a"


# Lines that sdrt prints.


def calls() -> Iterator[tuple[Path, str, list[ast.expr], dict[str, ast.expr]]]:
    """Return every call of an install line in the source: file, function, arguments."""
    for path in sorted(ROOT.glob("sdrt/**/*.py")):
        if path.name == "install_lines.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("_line"):
                yield path, node.func.id, node.args, {str(word.arg): word.value for word in node.keywords}


def test_every_call_names_extras_and_packages_that_exist(situation: str) -> None:
    seen = 0
    for path, function, arguments, named in calls():
        literal = [str(each.value) for each in (*arguments, *named.values()) if isinstance(each, ast.Constant)]
        if len(literal) != len(arguments) + len(named):
            # Their arguments are checked below.
            continue
        if function == "extra_line":
            assert installed_by(extra_line(*literal)), path
        elif function == "requirement_line":
            assert installed_by(requirement_line(literal[0], extra=literal[1])) == {literal[0]}, path
        else:
            continue
        seen += 1
    assert seen > 15


def test_extras_that_stand_in_tables_exist(situation: str) -> None:
    assert set(packages._EXTRAS.values()) <= EXTRAS.keys()
    assert {extra for _, extra in _MODULES.values()} <= EXTRAS.keys()
    for peer in plan.PEERS.values():
        line = plan._install_line(peer)
        if isinstance(peer.brought_by, str):
            assert installed_by(line) <= PEERS
        else:
            assert installed_by(line)
    for name in doctor.PACKAGES:
        *removals, line = doctor.install_line(name, set(doctor.RIVALS)).split(" && ")
        assert name in installed_by(line)
        for removal in removals:
            assert words_of(removal) == ["uninstall", "--yes", doctor.RIVALS[name]]


def test_nobody_else_writes_such_lines() -> None:
    for path in sorted(ROOT.glob("sdrt/**/*.py")):
        text = path.read_text()
        assert not re.search(r"sdrt\[", text.replace("``pip install sdrt[...]``", "")), path
        if path.name != "install_lines.py":
            assert not re.search(r"\bpip3? (un)?install", text), path


# Lines in the pages.


def documented() -> Iterator[tuple[Path, str]]:
    """Return every pip line in a page: a command, or between backquotes."""
    for path in PAGES:
        text = path.read_text()
        for found in re.finditer(
            r"`([^`\n]*pip3? (?:un)?install[^`\n]*)`|^ {4}(.*pip3? (?:un)?install.*)$", text, re.M
        ):
            yield path, (found[1] or found[2]).strip()


def check_documented(line: str) -> None:
    """Raise AssertionError unless a line works in a clone, or beside sdrt's wheel."""
    beside_the_wheel = re.fullmatch(r'pip install "\$\(ls sdrt-\*\.whl\)\[([a-z,]+)\]"', line)
    in_the_clone = re.fullmatch(r"\.venv/bin/pip install -e '\.\[([a-z,]+)\]'", line)
    for found in filter(None, (beside_the_wheel, in_the_clone)):
        assert set(found[1].split(",")) <= EXTRAS.keys()
        return
    words = shlex.split(line)
    assert words[:2] == [".venv/bin/pip", "install"]
    assert {Requirement(word).name for word in words[2:]} <= PEERS


def test_every_line_of_a_page_works_where_it_is_meant() -> None:
    lines = list(documented())
    assert len(lines) > 8
    for path, line in lines:
        try:
            check_documented(line)
        except (AssertionError, ValueError) as error:
            raise AssertionError(f"{path.name}: {line}") from error
    for path in PAGES:
        assert not re.search(r"sdrt\[", path.read_text()), path


@pytest.mark.parametrize(
    "line",
    [
        "pip install 'sdrt[cpu]'",
        "pip install sdrt",
        ".venv/bin/pip install -e '.[ghost]'",
        ".venv/bin/pip install -e '.[cpu'",
        'pip install "$(ls sdrt-*.whl)[ghost]"',
        "pip install matplotlib",
        ".venv/bin/pip install some-other-package",
    ],
)
def test_lines_that_would_not_are_told(line: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_documented(line)
