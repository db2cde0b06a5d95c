"""A file of prompts: JSON Lines, each line an object with a prompt and, optionally, settings."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdrt.errors import UsageError
from sdrt.files import unreadable
from sdrt.runtime.request import Request, make_request

LIMIT_BYTES = 64 << 20
#: Most pictures of one file: their names are numbered with four digits.
MAX_QUEUED = 9999
#: Fields of a line, named like the pipeline's arguments, and the kind of each value.
FIELDS: dict[str, str] = {
    "prompt": "text",
    "negative_prompt": "text",
    "seed": "a whole number",
    "num_images_per_prompt": "a whole number",
    "num_inference_steps": "a whole number",
    "guidance_scale": "a number",
    "guidance_interval": "two numbers",
}
#: JSON's 7.0 is a whole number, too; `make_request` rejects numbers such as 7.5.
_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "a whole number": (int, float),
    "a number": (int, float),
    "two numbers": (list,),
}


@dataclass(frozen=True)
class Line:
    """The request of one line. ``number`` counts the file's lines from 1, including blank ones."""

    number: int
    request: Request


def read_prompt_file(path: Path, settings: dict[str, Any]) -> tuple[Line, ...]:
    """Read a prompt file, and validate each line as a request.

    Args:
        path: JSON Lines in UTF-8, with or without a byte order mark, with the line ends of any system; blank lines are
            skipped.
        settings: Arguments of `make_request` for fields that a line lacks. They must include a seed: the first picture
            of a line without one has this seed plus the number of pictures before it in the file.

    Raises:
        UsageError: The file cannot be read or is empty, or a line is wrong; names the first wrong line with its error,
            and the numbers of the others.
    """
    hint = 'give JSON Lines: one {"prompt": "a red circle", "seed": 7} a line'
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise UsageError(f"{path} is larger than {LIMIT_BYTES >> 20} MiB", hint="split the file")
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, UsageError, hint=hint) from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: not a usable path", hint=hint) from error
    rows = _rows(path, data)
    if not 1 <= len(rows) <= MAX_QUEUED:
        raise UsageError(f"{path} has {len(rows)} lines; 1 to {MAX_QUEUED} can be drawn at once", hint=hint)
    lines: list[Line] = []
    wrong: dict[int, UsageError] = {}
    count = 0
    for number, row in rows.items():
        try:
            lines.append(Line(number, _request(row, {**settings, "seed": settings["seed"] + count})))
            count += len(lines[-1].request.pictures)
        except UsageError as error:
            wrong[number] = error
    if wrong:
        first, *others = wrong
        also = f"; {len(others)} more are wrong: {', '.join(map(str, others[:10]))}" if others else ""
        also += ", ..." if len(others) > 10 else ""
        raise UsageError(f"{path}, line {first}: {wrong[first].message}{also}", hint=wrong[first].hint)
    if count > MAX_QUEUED:
        raise UsageError(f"{path} asks for {count} pictures; {MAX_QUEUED} can be drawn at once", hint="split the file")
    return tuple(lines)


def _rows(path: Path, data: bytes) -> dict[int, bytes]:
    """Return the lines that are not blank, by line number.

    Raises:
        UsageError: The file is UTF-16 or UTF-32, or binary.
    """
    marks = {codecs.BOM_UTF32_LE: 32, codecs.BOM_UTF32_BE: 32, codecs.BOM_UTF16_LE: 16, codecs.BOM_UTF16_BE: 16}
    width = next((width for mark, width in marks.items() if data.startswith(mark)), None)
    if width is not None:
        raise UsageError(f"{path} is UTF-{width} by its byte order mark", hint="save the file as UTF-8")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        message = f"{path}, line {line}: it holds NUL bytes, as UTF-16 text and binary files do"
        raise UsageError(message, hint="save the file as UTF-8")
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    # In concatenated files any line may begin with a byte order mark.
    rows = {number: line.removeprefix(codecs.BOM_UTF8) for number, line in enumerate(lines, start=1)}
    return {number: row for number, row in rows.items() if row.strip()}


def _request(row: bytes, settings: dict[str, Any]) -> Request:
    """Return the request of a line, with ``settings`` for the fields that it lacks."""
    hint = f"a line is a JSON object with a prompt and any of {', '.join(list(FIELDS)[1:])}"
    try:
        value = json.loads(row.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise UsageError(f"not JSON: {reason}", hint=hint) from error
    except ValueError as error:
        # Python refuses to parse integers of more than 4300 digits.
        raise UsageError(f"not JSON that can be read: {error}"[:120], hint=hint) from error
    if not isinstance(value, dict):
        raise UsageError(f"a {type(value).__name__}; it must be a JSON object", hint=hint)
    for name, given in value.items():
        if name not in FIELDS:
            close = get_close_matches(name, FIELDS, 1)
            suggestion = f"did you mean {close[0]}?" if close else hint
            raise UsageError(f"there is no field {name[:40]!r}", hint=suggestion)
        if not isinstance(given, _TYPES[FIELDS[name]]) or isinstance(given, bool):
            raise UsageError(f"{name} is {json.dumps(given)[:40]}; it must be {FIELDS[name]}", hint=hint)
    if "prompt" not in value:
        raise UsageError("prompt is missing", hint=hint)
    return make_request(**{**settings, **value})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, or raise UsageError if a name occurs twice."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice[:40]!r} is given twice", hint="give it once")
    return value
