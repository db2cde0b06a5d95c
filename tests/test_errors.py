"""The tree of errors, its exit codes, and that every error raised in the source has a hint."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

import sdrt
from sdrt import errors
from sdrt.errors import SdrtError

SOURCE = Path(sdrt.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
#: As the design and `sdrt --help` document them.
EXIT_CODES = {
    "UsageError": 2,
    "ArtefactError": 3,
    "CheckpointError": 3,
    "BundleError": 3,
    "EngineError": 3,
    "BackendUnavailableError": 4,
    "NumericError": 5,
    "ResourceError": 6,
    "TimeLimitError": 7,
    "TrustError": 8,
}


def kinds() -> dict[str, type[SdrtError]]:
    found = {
        name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, SdrtError)
    }
    del found["SdrtError"]
    return found


def test_each_error_has_its_documented_exit_code() -> None:
    assert {name: kind.exit_code for name, kind in kinds().items()} == EXIT_CODES


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    lines = (errors.__doc__ or "").splitlines()
    for name, code in EXIT_CODES.items():
        (line,) = [line for line in lines if name in line]
        assert str(code) in line.split()
        parent = kinds()[name].__mro__[1].__name__
        above = [other for other in lines[: lines.index(line)] if parent in other]
        assert above, f"{name} stands before its parent {parent}"


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.__name__)
def test_errors_survive_the_way_between_processes(kind: type[SdrtError]) -> None:
    back = pickle.loads(pickle.dumps(kind("what", hint="next")))
    assert (type(back), back.message, back.hint, str(back)) == (kind, "what", "next", "what")


def constructions(tree: ast.AST) -> list[ast.Call]:
    """Return calls that construct sdrt's errors: by name, or by a parameter called kind."""
    names = {*kinds(), "SdrtError", "kind"}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names]


def test_every_error_in_the_source_has_a_hint() -> None:
    found = 0
    for path in MODULES:
        for call in constructions(ast.parse(path.read_text())):
            found += 1
            hints = [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
            where = f"{path.relative_to(SOURCE)}:{call.lineno}"
            assert len(hints) == 1, f"{where} has no hint"
            assert not (isinstance(hints[0], ast.Constant) and not hints[0].value), f"{where} has an empty hint"
            assert len(call.args) == 1, f"{where} has no message"
    assert found > 100


def test_the_search_for_hints_finds_a_missing_one() -> None:
    (call,) = constructions(ast.parse('raise UsageError("what is wrong")'))
    assert not call.keywords


def test_nothing_below_the_command_line_prints_or_exits() -> None:
    talkers = {"cli.py", "__main__.py", "progress.py"}
    for path in MODULES:
        if path.name in talkers or "commands" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("print", "exit", "quit"), f"{path}:{node.lineno}"


def test_no_broad_excepts_and_no_asserts_in_the_source() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: assert"
            if isinstance(node, ast.ExceptHandler):
                broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception")
                assert not broad, f"{path}:{node.lineno}: broad except"


def test_a_message_is_one_line_of_bounded_length_whatever_it_quotes() -> None:
    error = errors.UsageError("the name 'a\n\x1b[2Jb' is wrong", hint="choose another")
    assert error.message == str(error) == r"the name 'a\x0a\x1b[2Jb' is wrong"
    long = errors.UsageError("x" * 10_000, hint="shorten it")
    assert len(long.message) == errors.MESSAGE_LIMIT
    assert long.message.endswith("x ...")
