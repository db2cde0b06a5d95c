"""Quick fuzzing of every target: sound input damaged in a few bytes, or in a value of its JSON.

The damage is the same in every run; `make fuzz` looks for more.
"""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdrt.errors import BundleError, SdrtError, UsageError
from sdrt.graphs.structure import check_structure
from sdrt.graphs.validate import validate_graph
from tests.fuzz.targets import TARGETS, Finding, Target
from tests.graphs import models

Prepared = tuple[Target, Path, list[bytes]]

EXAMPLES = 120
#: Names and values to put in place of others.
ODD_NAMES = ["", ".", "../x", "a\nb", "\x1b[2J", "x" * 3000, "\ud800", "schema_version"]
ODD: list[Any] = [
    *(None, True, -1, 0, 1e308, -0.5, 2**63, 10**400),
    *("", "\0", "../x", "x" * 3000, "\ud800", "a\nb"),
    *([], {}, [[]], {"": {}}),
]


@pytest.fixture(scope="module", params=TARGETS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Return a target, its folder and its sound inputs."""
    target = TARGETS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return target, folder, target.prepare(folder)


def damaged(data: st.DataObject, sound: bytes) -> bytes:
    """Change, remove, duplicate or cut off bytes of the input, or exchange a value of its JSON."""
    kind = data.draw(st.sampled_from(("bytes", "cut", "double", "json", "noise")))
    if kind == "json":
        return exchanged(data, sound)
    if kind == "noise":
        return data.draw(st.binary(max_size=200))
    changed = bytearray(sound)
    position = data.draw(st.integers(0, len(changed)))
    length = data.draw(st.integers(0, 40))
    if kind == "cut":
        del changed[position : data.draw(st.sampled_from((position + length, len(changed))))]
    elif kind == "double":
        changed[position:position] = changed[position : position + length] * data.draw(st.integers(1, 50))
    elif changed:
        for place in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=5)):
            changed[place] = data.draw(st.integers(0, 255))
    return bytes(changed)


def exchanged(data: st.DataObject, sound: bytes) -> bytes:
    """Exchange one value of the input's first JSON for an odd one; return inputs without JSON unchanged."""
    start = sound.find(b"{")
    try:
        value, length = json.JSONDecoder().raw_decode(sound[start:].decode("latin-1"))
    except ValueError:
        return sound
    parent, key = {"whole": value}, "whole"
    places: list[tuple[Any, Any]] = [(parent, key)]
    for holder, name in places:
        inner = holder[name]
        if isinstance(inner, dict):
            places += [(inner, each) for each in inner]
        elif isinstance(inner, list):
            places += [(inner, each) for each in range(len(inner))]
    holder, name = data.draw(st.sampled_from(places))
    if isinstance(name, str) and data.draw(st.booleans()):
        holder[data.draw(st.sampled_from(ODD_NAMES))] = holder.pop(name)
    else:
        holder[name] = data.draw(st.sampled_from(ODD))
    text = json.dumps(next(iter(parent.values())))
    return sound[:start] + text.encode() + sound[start + length :]


def test_sound_input_is_taken(prepared: Prepared) -> None:
    target, folder, seeds = prepared
    assert seeds
    for sound in seeds:
        assert target.run(folder, sound), sound[:200]


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damage_is_refused_in_one_line_or_taken(prepared: Prepared, data: st.DataObject) -> None:
    target, folder, seeds = prepared
    target.run(folder, damaged(data, data.draw(st.sampled_from(seeds))))


@pytest.mark.parametrize(("message", "hint"), [("two\nlines", "x"), ("x" * 5000, "x"), ("no hint", "")])
def test_refusals_that_are_none_are_found(message: str, hint: str, tmp_path: Path) -> None:
    error = UsageError("", hint=hint)
    error.message = message  # set directly: sdrt's errors are one line by construction

    def read(_: Path, __: bytes) -> None:
        raise error

    with pytest.raises(Finding):
        Target(lambda _: [], read).run(tmp_path, b"")


def test_what_is_not_ours_is_found(tmp_path: Path) -> None:
    def read(_: Path, data: bytes) -> int:
        return data[0]

    with pytest.raises(IndexError):
        Target(lambda _: [], read).run(tmp_path, b"")


@pytest.mark.long
def test_damaged_graphs_that_our_reader_takes_do_no_harm_to_onnxs_checker_or_only_to_it(tmp_path: Path) -> None:
    """Check fault-matrix row 10: the C++ of ONNX reads them in the child process, which may crash."""
    source, path = random.Random(10), models.write(tmp_path)
    sound = path.read_bytes()
    taken = 0
    while taken < 40:
        damaged = bytearray(sound)
        for _ in range(source.randint(1, 4)):
            damaged[source.randrange(len(damaged))] = source.randrange(256)
        path.write_bytes(damaged)
        try:
            check_structure(path)
        except SdrtError:
            continue
        taken += 1
        with contextlib.suppress(BundleError):
            validate_graph(path)
