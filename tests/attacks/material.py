"""Material of the attacks: a checkpoint without networks, and files that show when a process opens or runs them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdrt.checkpoint.clip_vocabulary import SD_V1, write_clip_tokenizer
from sdrt.checkpoint.safetensors_header import header_bytes
from sdrt.checkpoint.weights import STEMS, weight_names
from sdrt.errors import SdrtError

UNET = "unet/diffusion_pytorch_model.safetensors"


def v1_checkpoint(folder: Path) -> Path:
    """Write a complete checkpoint: v1's configs and tokenizer, and weights of four numbers a component."""
    write_clip_tokenizer(folder / "tokenizer")
    for name in ("model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in STEMS)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((SD_V1 / name).read_bytes())
    for part in STEMS:
        (folder / part / weight_names(part)[0]).write_bytes(header_bytes({"x": ("F32", (4,))}) + bytes(16))
    return folder


def edit(path: Path, **values: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}))


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """Build a safetensors file from its parts; ``header`` is JSON unless it is bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


class Sentinel:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


class Canary:
    """A named pipe in place of a file: a process that opens it to read blocks, and ``watched`` sees it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        self.path = path

    @property
    def watched(self) -> bool:
        """True if a process has the pipe open for reading."""
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        os.close(handle)
        return True


def refusal(call: Callable[[], object], code: int, *named: str) -> SdrtError:
    """Return the call's error; assert its exit code, one line with ``named`` texts, and a hint."""
    with pytest.raises(SdrtError) as caught:
        call()
    error = caught.value
    assert error.exit_code == code, error.message
    assert "\n" not in error.message
    assert len(error.message) < 1000
    assert error.hint
    for text in named:
        assert text in error.message
    return error
