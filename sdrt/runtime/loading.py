"""Validation of the arguments of ``Pipeline.load``."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from sdrt.arguments import as_real, shown, whole
from sdrt.artefacts.engine_set import Provider
from sdrt.artefacts.manifest import MAX_TOKEN_MERGING, Precision
from sdrt.errors import UsageError

MAX_THREADS = 1024
#: Loops for guided steps: "auto" runs denoise_step if the engines hold it, "plain" always the UNet.
LOOPS = ("auto", "plain")


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Validate arguments of ``Pipeline.load`` and return them by name, each converted to its type.

    Raises:
        UsageError: An argument has the wrong type, or is not one of its choices; names the first.
    """
    return {
        name: None if value is None and name not in _NEEDED else _LOADING[name](name, value)
        for name, value in values.items()
    }


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name} is {shown(value)}; it must be text", hint=f"give {name} as text")
    return value


def _path(name: str, value: Any) -> Path:
    return Path(_path_text(name, value))


def _path_text(name: str, value: Any) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise UsageError(f"{name} is {shown(value)}; it must be text or a path", hint=f"give {name} as text")
    return path


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} is {shown(value)}; it must be True or False", hint=f"change {name}")
    return bool(value)


def _one_of(choices: Collection[str]) -> Callable[[str, Any], str]:
    def chosen(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise UsageError(f"{name} is {shown(value)}", hint=f"choose from {', '.join(choices)}")
        return value

    return chosen


def _threads(name: str, value: Any) -> int:
    return whole(name, value, 1, MAX_THREADS)


def _share(name: str, value: Any) -> float:
    share = as_real(value)
    if share is None:
        hint = "0.5 merges half of the tokens; leave it out to merge none"
        raise UsageError(f"{name} is {shown(value)}; it must be above 0 and up to {MAX_TOKEN_MERGING}", hint=hint)
    return share


_LOADING: dict[str, Callable[[str, Any], Any]] = {
    "checkpoint": _path_text,
    "revision": _text,
    "variant": _text,
    "bundle": _path,
    "engines": _path,
    "trust": _text,
    "backend": _text,
    "precision": _one_of(get_args(Precision)),
    "store": _path,
    "build": _flag,
    "threads": _threads,
    "loop": _one_of(LOOPS),
    "cuda_graphs": _flag,
    "keep_loaded": _flag,
    "provider": _one_of(get_args(Provider)),
    "deepcache": _flag,
    "token_merging": _share,
}
#: Arguments that cannot be None.
_NEEDED = ("backend", "build", "loop", "keep_loaded", "deepcache")
