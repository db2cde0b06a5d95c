"""Fault-matrix row 85: settings from files and the environment. sdrt reads no settings file; recipes come closest."""

from __future__ import annotations

import ast
import os
from functools import partial
from pathlib import Path

import pytest

import sdrt
from sdrt.engines.recipe import load_recipe
from tests.attacks.material import refusal
from tests.command_line import CommandLine

DEFAULT = (Path(sdrt.__file__).parent / "engines" / "recipes" / "sd-v1-default.toml").read_text()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "hardware_compatibility"),
        ("\xff", "is not TOML"),
        ("[" * 10_000, "is not TOML"),
        ("a = [" * 5_000, "is not TOML"),
        (DEFAULT + "\nunknown = 1\n", "unknown"),
        (DEFAULT.replace("optimization_level", "optimization_level = 9 #"), "optimization_level"),
        ("optimization_level = " + "9" * 5000, "is not TOML"),
        ("x" * (65 << 10), "too large"),
    ],
    ids=lambda text: text[:16],
)
def test_row_85_recipes(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8"))
    refusal(partial(load_recipe, str(path)), 2, "own.toml", named)


@pytest.mark.parametrize(
    "setting",
    ["", "=", "a", "a=1", "targets=", "targets=sm12", "batch=1", "batch.unet=4:2:1", "batch.x=1", "workspace_mib=0"],
)
def test_row_85_settings_on_the_command_line(setting: str, sdrt: CommandLine) -> None:
    refusal(partial(load_recipe, "sd-v1-default", [setting]), 2)
    ended = sdrt("build", "absent", "--backend", "tensorrt-rtx", f"--set={setting}")
    assert ended.code == 2, ended.err
    assert ended.complaint


def test_row_85_no_variable_of_the_environment_steers_sdrt() -> None:
    """Find code that reads a variable: commands take settings from options alone."""
    folder = Path(sdrt.__file__).parent
    read = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.getenv", "os.environ.get")
            indexed = isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ"
            set_here = indexed and isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
            if (called or indexed) and not set_here:
                read.add(ast.unparse(node))
    assert read == set()
    assert "SDRT_PORT" not in os.environ
