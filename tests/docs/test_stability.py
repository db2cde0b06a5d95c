"""docs/stability.md agrees with the code: each promise exists and means what it did."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel, create_model

import sdrt
from sdrt import errors
from sdrt.artefacts.manifest import SCHEMA_VERSION
from sdrt.cli import COMMANDS, cli
from sdrt.pipeline import Pipeline
from sdrt.runtime.result import Result
from tests.docs.promised import SCHEMAS, fields, golden

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "stability.md").read_text()
Fields = dict[str, dict[str, Any]]


def rows(start: str) -> list[list[str]]:
    """Return the cells of the table whose head starts with this."""
    lines = PAGE.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"| {start} |"))
    body = lines[at + 2 :]
    end = next((number for number, line in enumerate(body) if not line.startswith("|")), len(body))
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in body[:end]]


def promised_call(name: str) -> list[str]:
    """Return the arguments that the page promises of a callable."""
    (found,) = re.findall(rf"^    sdrt\.{re.escape(name)}\((.*)\)$", PAGE, flags=re.MULTILINE)
    return [argument.strip() for argument in found.split(",") if argument.strip()]


def promised_names(name: str) -> list[str]:
    """Return the names that the page promises of a class or module."""
    (found,) = re.findall(rf"^    sdrt\.{re.escape(name)}: (.*)$", PAGE, flags=re.MULTILINE)
    return [each.strip() for each in found.split(",")]


@pytest.mark.parametrize("name", ["load", "__call__", "decode", "stop", "close"])
def test_calls_take_what_is_promised(name: str) -> None:
    taken = inspect.signature(getattr(Pipeline, name)).parameters
    promised = promised_call(f"Pipeline.{name}")
    assert [argument for argument in taken if argument in promised] == promised
    others = [parameter for argument, parameter in taken.items() if argument not in (*promised, "self")]
    assert all(parameter.default is not inspect.Parameter.empty for parameter in others), "a call must not need more"


def test_names_are_where_they_are_promised() -> None:
    assert set(promised_names("Result")) <= {field.name for field in dataclasses.fields(Result)}
    assert {"Pipeline", "Result", "__version__"} == set(sdrt.__all__)
    classes = {name for name, value in vars(errors).items() if inspect.isclass(value)}
    assert set(promised_names("errors")) == classes
    assert all("hint" in inspect.signature(getattr(errors, name)).parameters for name in classes)


def found_options(words: list[str]) -> set[str]:
    """Return the options of a command."""
    command: click.Command = cli
    context = click.Context(cli, **cli.context_settings)
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None, word
        command = found
    return {name for option in command.params if isinstance(option, click.Option) for name in option.opts}


@pytest.mark.parametrize("row", rows("command"), ids=lambda row: str(row[0]))
def test_commands_take_what_is_promised(row: list[str]) -> None:
    promised = set(row[1].split())
    assert promised
    assert promised <= found_options(row[0].split()[1:])


def test_every_command_is_promised() -> None:
    promised = {row[0].split()[1] for row in rows("command")[1:]}
    assert promised == set(COMMANDS)


def test_a_promised_option_that_is_not_there_is_found() -> None:
    assert not {"--json", "--jsn"} <= found_options(["info"])
    with pytest.raises(AssertionError):
        found_options(["store", "sell"])


def test_exit_codes_are_as_promised() -> None:
    promised = {int(code): meaning for code, meaning in rows("exit code")}
    classes = [
        value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, errors.SdrtError)
    ]
    # Success and interruption are not sdrt's errors; the base of the tree is never raised itself.
    assert promised.keys() - {0, 130} == {each.exit_code for each in classes if each is not errors.SdrtError}
    said = " ".join(cli.get_help(click.Context(cli, **cli.context_settings)).split())
    for code, meaning in promised.items():
        assert f"{code} {meaning}" in said


def test_the_makefile_has_what_is_promised() -> None:
    text = re.search(r"`make` has the targets (.*?)\.\n", PAGE, flags=re.DOTALL)
    assert text is not None
    makefile = (ROOT / "Makefile").read_text()
    targets, variables = text[1].split("variables")
    for name in re.findall(r"`(\w+)`", targets):
        assert re.search(rf"^{name}:.*##", makefile, flags=re.MULTILINE), name
    for name in re.findall(r"`(\w+)`", variables):
        assert re.search(rf"^{name} \?=", makefile, flags=re.MULTILINE), name


def test_schemas_are_where_they_are_promised() -> None:
    found = {row[2]: row[1] for row in rows("file")}
    assert found.keys() == SCHEMAS.keys() == golden().keys()
    for name, number in found.items():
        module, _, schema = name.rpartition(".")
        assert getattr(importlib.import_module(module), schema) is SCHEMAS[name]
        version = SCHEMAS[name].model_fields.get("schema_version")
        assert number == ("none" if version is None else str(SCHEMA_VERSION))
        assert version is None or str(version.annotation) == f"typing.Literal[{number}]"


def broken(promised: Fields, found: Fields) -> list[str]:
    """List broken promises: a missing field, another type, or a newly required field."""
    lines = []
    for path, was in promised.items():
        now = found.get(path)
        if now is None:
            lines.append(f"{path} is gone")
        elif now["type"] != was["type"] and not _wider(was["type"], now["type"]):
            lines.append(f"{path} was {was['type']} and is {now['type']}")
        elif was.get("nullable") and not now.get("nullable"):
            lines.append(f"{path} may no longer be null")
    new = found.keys() - promised.keys()
    needed = [path for path, now in found.items() if now["required"] and not (promised.get(path) or now)["required"]]
    needed += [path for path in new if found[path]["required"] and _parent(path) in {*promised, ""}]
    return lines + [f"{path} is newly required" for path in sorted(needed)]


def _wider(was: Any, now: Any) -> bool:
    """Return whether a list of values has only grown, so that older files stay readable."""
    return isinstance(was, list) and isinstance(now, list) and set(was) <= set(now)


def _parent(path: str) -> str:
    """Return the path of a field's parent."""
    return re.sub(r"(\[\]|\.\*)+$", "", path).rpartition(".")[0]


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_keep_what_they_promised(name: str) -> None:
    # A breaking change needs a new schema_version, and then python -m tests.docs.promised.
    assert broken(golden()[name], fields(SCHEMAS[name])) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_field_is_promised(name: str) -> None:
    missing = fields(SCHEMAS[name]).keys() - golden()[name].keys()
    assert missing == set(), "new fields are promised too: python -m tests.docs.promised"


class _Inner(BaseModel):
    count: int
    label: str | None = None


class _Was(BaseModel):
    name: str
    kind: int | None = None
    inner: list[_Inner]
    by_name: dict[str, _Inner]


def test_fields_are_found_wherever_they_lie() -> None:
    paths = fields(_Was)
    assert {"name", "kind", "inner", "inner[]", "inner[].count", "by_name.*.label"} <= paths.keys()
    assert paths["inner[].label"] == {"type": "string", "required": False, "nullable": True}
    assert paths["name"] == {"type": "string", "required": True}


def test_breaks_are_found() -> None:
    was = fields(_Was)
    assert broken(was, was) == []
    without = {path: value for path, value in was.items() if path != "inner[].label"}
    assert broken(was, without) == ["inner[].label is gone"]
    retyped = copy.deepcopy(was) | {"name": {"type": "integer", "required": True}}
    assert broken(was, retyped) == ["name was string and is integer"]
    asked = fields(create_model("Asked", __base__=_Was, more=(int, ...)))
    assert broken(was, asked) == ["more is newly required"]
    optional = fields(create_model("Optional", __base__=_Was, more=(int, 0)))
    assert broken(was, optional) == []
    strict = copy.deepcopy(was)
    strict["kind"] |= {"required": True, "nullable": False}
    assert broken(was, strict) == [
        "kind may no longer be null",
        "kind is newly required",
    ]
    values = {"a": {"type": ["x", "y"], "required": True}}
    assert broken(values, {"a": {"type": ["x", "y", "z"], "required": True}}) == []
    assert broken(values, {"a": {"type": ["x"], "required": True}}) == ["a was ['x', 'y'] and is ['x']"]
