"""Every package is pinned, its licence listed, and its known vulnerabilities queried where possible."""

from __future__ import annotations

import json
import sys
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import audit, licences
from tools.constraints import HEAD, pins
from tools.requirements import APART, CONSTRAINTS, closure, pinned, requirement_groups

#: Licences that let sdrt be installed with a package and used for anything.
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT"),
    *("MIT-CMU", "PSF-2.0", "Zlib", "LLVM-exception"),
}
#: Licences by which changes to the package's own files must be published; use has no conditions.
BY_FILE = {"MPL-2.0"}


def ours() -> dict[str, list[Requirement]]:
    """Return the groups that one environment can hold."""
    return {name: group for name, group in requirement_groups().items() if name not in APART}


def installed() -> dict[str, dict[str, Distribution]]:
    """Return the packages of each group. torch's GPU packages are left out: torch names their exact versions itself."""
    found = {group: closure(requirements) for group, requirements in ours().items()}
    return {
        group: {name: each for name, each in packages.items() if not name.startswith(licences.GPU_PARTS)}
        for group, packages in found.items()
    }


def test_everything_that_is_installed_is_pinned() -> None:
    pinned_here = pinned()
    for group, packages in installed().items():
        for name, package in packages.items():
            assert name in pinned_here, f"{name} comes with {group}"
            assert package.version.partition("+")[0] == pinned_here[name], name


def test_pins_are_what_pyproject_asks_for() -> None:
    here = pinned()
    for group, requirements in ours().items():
        for requirement in requirements:
            assert requirement.name not in here or requirement.specifier.contains(here[requirement.name]), group
    assert not Requirement("click>=99").specifier.contains(here["click"])


def test_the_walk_finds_what_is_needed_in_turn() -> None:
    # markdown-it-py is required by rich alone, mdurl by markdown-it-py alone.
    assert {"rich", "markdown-it-py", "mdurl"} <= closure([Requirement("rich")]).keys()
    assert closure([Requirement("no-such-package-here")]) == {}


def test_constraints_come_from_pips_report() -> None:
    names = (("torch", "2.13.0+cpu"), ("Jinja2", "3.1.6"), ("sdrt", "0.1.0"), ("anyio", "4.16.0"))
    report = {"install": [{"metadata": {"name": name, "version": number}} for name, number in names]}
    assert pins(report) == f"{HEAD}anyio==4.16.0\nJinja2==3.1.6\ntorch==2.13.0\n"
    assert CONSTRAINTS.read_text().startswith("# What the Makefile installs, pinned.")


def test_the_page_lists_every_package_that_is_installed() -> None:
    rows = [line.strip("| ").split(" | ") for line in licences.PAGE.read_text().splitlines() if line.startswith("| ")]
    listed = {row[0]: row for row in rows[1:]}
    for packages in installed().values():
        for name, package in packages.items():
            assert name in listed, "run make docs"
            assert listed[name][1:3] == [pinned()[name], licences.licence(package)], f"{name}: run make docs"


def test_licences_are_permissive_but_for_nvidias() -> None:
    for group, packages in installed().items():
        for name, package in packages.items():
            licence = licences.licence(package)
            words = set(licence.replace("(", "").replace(")", "").replace(" WITH ", " AND ").split()) - {"AND", "OR"}
            if name.startswith("tensorrt"):
                assert (group, licence) == ("rtx", licences.PROPRIETARY)
            else:
                assert words <= PERMISSIVE | BY_FILE, f"{name}: {licence}"
            if group in ("runtime", "cpu"):
                assert words & PERMISSIVE, f"{name}: {licence}"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License-Expression": "MIT OR Apache-2.0", "License": "GPL-3.0"}, "MIT OR Apache-2.0"),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": "License :: OSI Approved", "License": "Apache-2.0"}, "Apache-2.0"),
        ({"License": "GPL-3.0-only"}, "GPL-3.0-only"),
        ({"License": "Copyright (c) somebody\nall rights reserved"}, licences.UNKNOWN),
        ({"Classifier": "License :: Other/Proprietary License"}, licences.PROPRIETARY),
        ({}, licences.UNKNOWN),
    ],
)
def test_what_a_package_says_of_its_licence(fields: dict[str, str], expected: str) -> None:
    metadata = Message()
    for name, value in fields.items():
        metadata[name] = value
    assert licences.stated(metadata) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("   Apache License\n   Version 2.0, January 2004\n", "Apache-2.0"), ("All rights reserved", licences.UNKNOWN)],
)
def test_what_a_licence_file_says(text: str, expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "thing-1.0.dist-info"
    (folder / "licenses").mkdir(parents=True)
    (folder / "METADATA").write_text("Name: thing\nVersion: 1.0\n")
    (folder / "RECORD").write_text("thing-1.0.dist-info/licenses/LICENSE,,\n")
    (folder / "licenses" / "LICENSE").write_text(text)
    assert licences.licence(Distribution.at(folder)) == expected


CLEAN = {"name": "click", "version": "8.5.1", "vulns": []}
UNKNOWN = {"name": "click", "skip_reason": "Dependency not found"}
BAD = {"name": "pillow", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}


def client(tmp_path: Path, told: object) -> list[str]:
    """Write a pip-audit that prints this whatever its arguments; a text means an error instead."""
    script = tmp_path / "client.py"
    script.write_text(
        "import json, sys\n"
        f"told = json.loads({json.dumps(told)!r})\n"
        "open(sys.argv[0] + '.asked', 'a').write(open(sys.argv[2]).read().splitlines()[0] + '\\n')\n"
        "if isinstance(told, str): sys.exit(told)\n"
        "open(sys.argv[-1], 'w').write(json.dumps({'dependencies': told, 'fixes': []}))\n"
    )
    return [sys.executable, str(script)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(audit, "FOLDER", tmp_path)
    monkeypatch.setattr(audit, "ANSWER", tmp_path / "answer.json")
    return tmp_path


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        ([CLEAN], 0, "0 known vulnerabilities in 1 packages; 0 could not"),
        ([CLEAN, UNKNOWN], 0, "0 known vulnerabilities in 1 packages; 1 could not"),
        ([CLEAN, BAD], 1, "pillow 1.0: CVE-1, fixed in 1.1"),
        ([UNKNOWN], 0, "not done: the package index used here has no vulnerability data"),
        ("a long trace\nConnectionError: no route", 0, "not done: ConnectionError: no route"),
    ],
)
def test_an_audit_fails_by_what_it_finds_alone(
    told: object,
    code: int,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audit, "installed_client", lambda: client(folder, told))
    assert audit.main() == code
    assert said in capsys.readouterr().out


def test_an_audit_is_asked_for_once_a_day_and_set_of_pins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asking = client(folder, [CLEAN])
    asked = folder / "client.py.asked"
    for _ in range(2):
        assert audit.ask(asking) == [CLEAN]
    # One pin to test whether the index knows anything, then all of them; nothing the second time.
    assert len(asked.read_text().splitlines()) == 2
    kept = json.loads(audit.ANSWER.read_text())
    audit.ANSWER.write_text(json.dumps({**kept, "at": kept["at"] - audit.FRESH_S}))
    audit.ask(asking)
    assert len(asked.read_text().splitlines()) == 4
    monkeypatch.setattr(audit, "pinned", lambda: {"click": "8.5.0"})
    audit.ask(asking)
    assert len(asked.read_text().splitlines()) == 6


def test_a_client_that_cannot_be_installed_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(audit.UnreachableError, match="cannot be installed"):
        audit.installed_client()
    assert not (folder / f"ready-{audit.VERSION}").exists()
