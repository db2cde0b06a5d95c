"""A file of prompts: JSON Lines, one object a line with a prompt and, where it wants its own, settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdrt.errors import UsageError
from sdrt.files import unreadable
from sdrt.runtime.request import Request, make_request

LIMIT_BYTES = 64 << 20
#: Pictures of one file: their names are numbered with four digits.
MAX_QUEUED = 9999
#: What a line may say, named as the arguments of the pipeline are, and what kind of value each is.
FIELDS: dict[str, tuple[type, ...]] = {
    "prompt": (str,),
    "negative_prompt": (str,),
    "seed": (int,),
    "num_images_per_prompt": (int,),
    "num_inference_steps": (int,),
    "guidance_scale": (int, float),
    "guidance_interval": (list,),
}


@dataclass(frozen=True)
class Line:
    """What one line asks for. ``number`` counts the file's lines from 1, blank ones too."""

    number: int
    request: Request


def read_prompt_file(path: Path, settings: dict[str, Any]) -> tuple[Line, ...]:
    """The lines of a file, each checked as a request of its own.

    Args:
        path: JSON Lines in UTF-8; blank lines are passed over.
        settings: Arguments of `make_request` for what a line leaves out, a seed among them: a line's pictures have the
            line's own and those after it, or else the settings' plus the number of pictures before them in the file.

    Raises:
        UsageError: The file cannot be read or is empty; or names the first line that is wrong, what is wrong with it,
            and the numbers of the others.
    """
    hint = 'give JSON Lines: one {"prompt": "a red circle", "seed": 7} a line'
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise UsageError(f"{path} is larger than {LIMIT_BYTES >> 20} MiB", hint="split the file")
        rows = {number: row for number, row in enumerate(path.read_bytes().split(b"\n"), start=1) if row.strip()}
    except OSError as error:
        raise unreadable(path, error, UsageError, hint=hint) from error
    except ValueError as error:
        raise UsageError(f"cannot read {path}: not a usable path", hint=hint) from error
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


def _request(row: bytes, settings: dict[str, Any]) -> Request:
    """One line as a request."""
    hint = f"a line is a JSON object with a prompt and any of {', '.join(list(FIELDS)[1:])}"
    try:
        value = json.loads(row.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise UsageError(f"not UTF-8 at byte {error.start}", hint="save the file as UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else "too deep"
        raise UsageError(f"not JSON: {reason}", hint=hint) from error
    except ValueError as error:
        # Python refuses to read a whole number of more than 4300 digits.
        raise UsageError(f"not JSON that can be read: {error}"[:120], hint=hint) from error
    if not isinstance(value, dict):
        raise UsageError(f"a {type(value).__name__}, where a JSON object must be", hint=hint)
    for name, given in value.items():
        if name not in FIELDS:
            close = get_close_matches(name, FIELDS, 1)
            said = f"did you mean {close[0]}?" if close else hint
            raise UsageError(f"there is no field {name[:40]!r}", hint=said)
        if not isinstance(given, FIELDS[name]) or isinstance(given, bool):
            wanted = {str: "text", int: "a whole number", list: "two numbers"}.get(FIELDS[name][0], "a number")
            wanted = "a number" if float in FIELDS[name] else wanted
            raise UsageError(f"{name} is {json.dumps(given)[:40]}; it must be {wanted}", hint=hint)
    if "prompt" not in value:
        raise UsageError("prompt is missing", hint=hint)
    return make_request(**{**settings, **value})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names are all different."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"{twice[:40]!r} stands there twice", hint="say it once")
    return value


def settings_of(request: Request) -> Request:
    """A request without its pictures: pictures of requests that are equal so may be denoised together."""
    return replace(request, pictures=())
