"""Arguments from Python: numbers of any library and ordered collections, or an error that names the argument."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from typing import Any

from sdrt.errors import UsageError

#: How the names of the types of numbers begin, in NumPy and in libraries that follow it.
_NUMBERS = ("int", "uint", "float", "bfloat")


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Return a whole number of a range as an int, whatever library's it is; 5.0 is one.

    Raises:
        UsageError: It is no whole number, or beyond the range.
    """
    number = as_whole(value)
    if number is None or not least <= number <= most:
        raise UsageError(
            f"{name} is {shown(value)}; it must be a whole number, {least} to {most}", hint=f"change {name}"
        )
    return number


def as_whole(value: Any) -> int | None:
    """Return a whole number of any library as an int; None for anything else."""
    if not _is_number(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        number = as_real(value)
        return int(number) if number is not None and number.is_integer() else None


def as_real(value: Any) -> float | None:
    """Return a number of any library as a float; None for anything else."""
    if not _is_number(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _is_number(value: Any) -> bool:
    """Return whether a value is a single real number, of Python or of a library whose numbers have a dtype."""
    if isinstance(value, bool) or not (hasattr(value, "__index__") or hasattr(value, "__float__")):
        return False
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return True
    return getattr(value, "ndim", 0) == 0 and str(dtype).removeprefix("torch.").startswith(_NUMBERS)


def shown(value: Any) -> str:
    """Return a value as an error quotes it: one of NumPy's numbers as Python's, and not too long."""
    if _is_number(value):
        number = as_whole(value)
        value = as_real(value) if number is None else number
    try:
        return repr(value)[:40]
    # A whole number of more than 4300 digits has no text; an object's own repr may raise anything.
    except Exception:
        return f"a {type(value).__name__}"


def items(name: str, values: Any, wanted: str) -> list[Any]:
    """Return the items of a list, an array or another ordered collection.

    Raises:
        UsageError: It has none, or they have no order.
    """
    if not isinstance(values, str | bytes | bytearray | Mapping | Set) and isinstance(values, Iterable):
        try:
            return list(values)
        except TypeError:
            # An array of no dimensions says that it can be iterated.
            pass
    raise UsageError(f"{name} is {shown(values)}; it must be {wanted}", hint=f"change {name}")
