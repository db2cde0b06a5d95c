"""Write typings/tensorrt_rtx: stubs from the installed bindings, for mypy (``python -m tests.stubs.generate``).

pybind11 puts each signature into the docstring. This adds what signatures omit: tuples convert to Dims and arrays to
Weights, and a function whose documentation mentions returning None may do so.
"""

from __future__ import annotations

import ast
import inspect
import keyword
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorrt_rtx

OUT = Path(__file__).parents[2] / "typings" / "tensorrt_rtx" / "__init__.pyi"
HEAD = """# Written by python -m tests.stubs.generate from tensorrt_rtx {version}; not edited by hand.
# mypy: disable-error-code="type-arg,override,overload-cannot-match"
import builtins
import collections.abc
import typing
from typing import Any, ClassVar, Self, overload

import typing_extensions

__version__: str
"""
#: Argument types that Python converts.
CONVERTED = {"Dims": "Dims | typing.Sequence[int]", "Weights": "Weights | Any"}
#: Other names that a type may contain.
PLAIN = {
    *("bool", "bytes", "collections", "dict", "float", "int", "list"),
    *("object", "set", "str", "tuple", "typing", "typing_extensions"),
}
#: Functions that return None on failure without documentation of it.
FAILING = {("Builder", "build_serialized_network"), ("IBuilderConfig", "create_timing_cache")}
#: Classes with C++ buffers, which Python 3.11 cannot detect.
BUFFERS = ("IHostMemory",)
#: Special methods worth having; the rest are object's.
SPECIAL = re.compile(r"__(init|getitem|setitem|delitem|len|iter|contains|call|int|index|bool|or|and|lt|le|gt|ge)__")
#: Python's additions to the bindings, without docstrings.
CONTEXT = {
    "__enter__": "def __enter__(self) -> Self: ...",
    "__exit__": "def __exit__(self, *exception: object) -> None: ...",
}
SIGNATURE = re.compile(r"^(?:\d+\. )?\w+\((.*)\) -> (.+)$", re.MULTILINE)
BINDINGS = re.compile(r"tensorrt_rtx_bindings\.tensorrt_rtx\.")


def stub() -> str:
    """Return the text of the stub."""
    return HEAD.format(version=tensorrt_rtx.__version__) + "\n".join(_module_lines()) + "\n"


def _module_lines() -> Iterator[str]:
    for name, value in sorted(vars(tensorrt_rtx).items()):
        if inspect.isclass(value) and _is_bound(value):
            yield from _class_lines(value, "")
        elif isinstance(value, tensorrt_rtx.DataType):
            yield f"{name}: DataType"
        elif isinstance(value, types.BuiltinFunctionType):
            yield from _function_lines("", name, value.__doc__ or "", "", static=True)


def _is_bound(value: type) -> bool:
    return value.__module__.startswith("tensorrt_rtx_bindings")


def _class_lines(bound: type, indent: str) -> Iterator[str]:
    bases = [base.__qualname__ for base in bound.__bases__ if _is_bound(base)]
    yield f"{indent}class {bound.__name__}{'(' + ', '.join(bases) + ')' if bases else ''}:"
    inner = indent + "    "
    lines = [line for name, value in sorted(vars(bound).items()) for line in _member_lines(bound, name, value, inner)]
    if bound.__name__ in BUFFERS:
        lines.append(f"{inner}def __buffer__(self, flags: int, /) -> memoryview: ...")
    if "__getitem__" in vars(bound) and "__iter__" not in vars(bound):
        # Python iterates over these by their indices.
        (item,) = {
            _type(told[2]) for told in SIGNATURE.finditer(vars(bound)["__getitem__"].__doc__) if "slice" not in told[1]
        }
        lines.append(f"{inner}def __iter__(self) -> typing.Iterator[{item}]: ...")
    yield from lines or [f"{inner}..."]


def _member_lines(bound: type, name: str, value: Any, indent: str) -> Iterator[str]:
    if name in CONTEXT:
        yield indent + CONTEXT[name]
    elif name.startswith("_") and not SPECIAL.fullmatch(name):
        return
    elif isinstance(value, property):
        yield from _property_lines(name, value, indent)
    elif inspect.isclass(value):
        if _is_bound(value):
            yield from _class_lines(value, indent)
    elif isinstance(value, staticmethod):
        yield from _function_lines(bound.__name__, name, value.__func__.__doc__ or "", indent, static=True)
    elif callable(value) and not isinstance(value, types.WrapperDescriptorType):
        yield from _function_lines(bound.__name__, name, getattr(bound, name).__doc__ or "", indent, static=False)
    elif _is_bound(type(value)):
        yield f"{indent}{name}: ClassVar[{type(value).__qualname__}]"


def _property_lines(name: str, value: property, indent: str) -> Iterator[str]:
    told = SIGNATURE.search("f" + (value.fget.__doc__ or "")) if value.fget else None
    kind = _type(told[2]) if told else "Any"
    yield f"{indent}@property"
    yield f"{indent}def {name}(self) -> {kind}: ..."
    if value.fset:
        taken = CONVERTED.get(kind, kind)
        yield f"{indent}@{name}.setter"
        yield f"{indent}def {name}(self, value: {taken}) -> None: ..."


def _function_lines(owner: str, name: str, doc: str, indent: str, *, static: bool) -> Iterator[str]:
    signatures = list(dict.fromkeys(_signatures(owner, name, doc, static=static)))
    for signature in signatures or [f"def {name}({'' if static else 'self, '}*args: Any, **kwargs: Any) -> Any: ..."]:
        if len(signatures) > 1:
            yield f"{indent}@overload"
        if static and indent:
            yield f"{indent}@staticmethod"
        yield f"{indent}{signature}"


def _signatures(owner: str, name: str, doc: str, *, static: bool) -> Iterator[str]:
    for block in re.split(r"(?m)^(?=\d+\. )", doc):
        for told in SIGNATURE.finditer(block):
            if told[1] == "*args, **kwargs":
                continue
            parameters = _split(told[1])
            given = _type(told[2])
            none = " | None" if _may_fail(owner, name, block) and "None" not in given else ""
            yield f"def {name}({', '.join(_parameters(parameters, static=static))}) -> {given}{none}: ..."
            break


def _may_fail(owner: str, name: str, doc: str) -> bool:
    """Return whether a function returns None on failure; None for an index beyond the last is the caller's mistake."""
    told = re.search(r":returns?:([^\n]*\bNone\b[^\n]*)", doc)
    return (owner, name) in FAILING or bool(told and "out of range" not in told[1])


def _split(text: str) -> list[str]:
    """Split parameters at commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _parameters(parameters: list[str], *, static: bool) -> Iterator[str]:
    names = [part.partition(":")[0] for part in parameters]
    unnamed = [bool(re.fullmatch(r"arg\d+", name)) or keyword.iskeyword(name) for name in names]
    # pybind11 allows parameters without defaults after ones with defaults; such a default is never used.
    needed = [index for index, part in enumerate(parameters) if "=" not in part and not part.startswith(("*", "/"))]
    for index, part in enumerate(parameters):
        if index == 0 and not static:
            yield "self"
        elif part in ("/", "*") or part.startswith("*"):
            yield part if ":" in part or len(part) == 1 else f"{part}: Any"
        else:
            kind, equals, _ = part.partition(":")[2].partition("=")
            name = f"{names[index]}_" if keyword.iskeyword(names[index]) else names[index]
            taken = _type(kind.strip())
            default = " = ..." if equals and index > max(needed, default=-1) else ""
            yield f"{name}: {CONVERTED.get(taken, taken)}{default}"
        if unnamed[index] and not any(unnamed[index + 1 :]):
            yield "/"


def _type(text: str) -> str:
    """Return a type as a stub writes it; C++ types that Python never sees are Any."""
    plain = BINDINGS.sub("", text.strip())
    try:
        tree = ast.parse(plain, mode="eval")
    except SyntaxError:
        return "Any"
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    if not used <= PLAIN | {name for name, value in vars(tensorrt_rtx).items() if inspect.isclass(value)}:
        return "Any"
    # The module has a DataType of this name.
    return re.sub(r"\bbool\b", "builtins.bool", plain)


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(stub())
