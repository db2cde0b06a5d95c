"""Validation of arguments from Python: numbers of any library, and ordered collections."""

from __future__ import annotations

import operator
import reprlib
import sys
from collections.abc import Iterable, Mapping, Set
from typing import Any

from sdrt.errors import UsageError

#: Prefixes of the names of numeric dtypes, in NumPy and in libraries that follow it.
_NUMBERS = ("int", "uint", "float", "bfloat")


def whole(name: str, value: Any, least: int, most: int) -> int:
    """Return a whole number of any library as an int; 5.0 counts as one.

    Args:
        name: Argument, as the error names it.
        value: Its value.
        least: Smallest value allowed.
        most: Largest value allowed.

    Raises:
        UsageError: The value is not a whole number, or is out of range.
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


_REPR = reprlib.Repr()
_REPR.maxother = sys.maxsize


def _is_number(value: Any) -> bool:
    """Return whether a value is a single real number, of Python or of a library whose numbers have a dtype."""
    if isinstance(value, bool) or not (hasattr(value, "__index__") or hasattr(value, "__float__")):
        return False
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        return True
    return getattr(value, "ndim", 0) == 0 and str(dtype).removeprefix("torch.").startswith(_NUMBERS)


def shown(value: Any) -> str:
    """Return a value's repr for an error message: NumPy's numbers as Python's, at most 40 characters."""
    if _is_number(value):
        number = as_whole(value)
        value = as_real(value) if number is None else number
    try:
        # An object's own repr may raise anything: reprlib names the type then.
        return (repr(value) if isinstance(value, int) else _REPR.repr_instance(value, 0))[:40]
    except ValueError:
        # Python refuses to print integers of more than 4300 digits.
        return f"a {type(value).__name__}"


def items(name: str, values: Any, wanted: str) -> list[Any]:
    """Return the items of a list, an array or another ordered collection.

    Args:
        name: Argument, as the error names it.
        values: Its value.
        wanted: Description of valid values, for the error.

    Raises:
        UsageError: The value is text, is not iterable, or has no order.
    """
    if not isinstance(values, str | bytes | bytearray | Mapping | Set) and isinstance(values, Iterable):
        try:
            return list(values)
        except TypeError:
            # An array of no dimensions has __iter__, which raises.
            pass
    raise UsageError(f"{name} is {shown(values)}; it must be {wanted}", hint=f"change {name}")
