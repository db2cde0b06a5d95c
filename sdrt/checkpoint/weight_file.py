"""A component's file of weights by its header: names without wrappers' parts, and notes of ignored tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sdrt.checkpoint.safetensors_header import TensorEntry, read_header
from sdrt.checkpoint.surplus import SurplusKind, surplus_kind, unwrapped
from sdrt.errors import CheckpointError

#: Dtypes of weights that are used unchanged, and dtypes that are converted to fp32, by widening or narrowing.
FLOATS = ("F32", "F16", "BF16")
CONVERTED = {"F64": "narrowed", "F8_E4M3": "widened", "F8_E5M2": "widened"}


@dataclass(frozen=True)
class WeightTensor:
    """A tensor that may belong to the network: its name in the file and its entry in the header."""

    name_in_file: str
    entry: TensorEntry


@dataclass(frozen=True)
class WeightFile:
    """A file of weights.

    Attributes:
        path: The .safetensors file.
        tensors: The tensors by name without wrappers' parts; harmless surplus is left out.
        notes: Lines about tensors that were renamed, ignored or converted.
    """

    path: Path
    tensors: dict[str, WeightTensor]
    notes: tuple[str, ...]


def read_weight_file(path: Path, component: str, layers: int | None = None) -> WeightFile:
    """Read the header of a component's weights.

    Args:
        path: The .safetensors file.
        component: "text_encoder", "unet" or "vae".
        layers: The text encoder's num_hidden_layers.

    Raises:
        CheckpointError: The file is malformed, holds a tensor under two names, or holds tensors that change what the
            network computes, such as an adapter.
    """
    tensors: dict[str, WeightTensor] = {}
    ignored: dict[SurplusKind, list[str]] = {}
    repaired: list[str] = []
    for name_in_file, entry in read_header(path).tensors.items():
        name = unwrapped(name_in_file)
        kind = surplus_kind(component, name, layers)
        if kind is None:
            if name in tensors:
                raise CheckpointError(
                    f"{path}: {name_in_file} is there twice, under two names", hint="save the weights again"
                )
            if name != name_in_file:
                repaired.append(name_in_file)
            tensors[name] = WeightTensor(name_in_file, entry)
        elif kind.hint is not None:
            raise CheckpointError(f"{path} holds {kind.what}: {name_in_file}", hint=kind.hint)
        elif not kind.usual:
            ignored.setdefault(kind, []).append(name_in_file)
    return WeightFile(path, tensors, reading_notes(path, ignored, repaired, tensors.values()))


def reading_notes(
    path: Path,
    ignored: Mapping[SurplusKind, list[str]],
    repaired: list[str],
    tensors: Iterable[WeightTensor],
) -> tuple[str, ...]:
    """Return lines about tensors that are renamed, ignored or converted.

    Args:
        path: The file.
        ignored: Names of ignored tensors by kind.
        repaired: Names from which a wrapper's prefix was removed.
        tensors: The tensors that are read.
    """
    notes = [f"{path}: ignored {_count(names)} of {kind.what}" for kind, names in ignored.items()]
    if repaired:
        notes.append(f"{path}: removed a wrapper's prefix from {_count(repaired)}")
    return (*notes, *_conversions(path, tensors))


def _conversions(path: Path, tensors: Iterable[WeightTensor]) -> list[str]:
    """Return a line for each dtype of weights that is converted."""
    lines, tensors = [], list(tensors)
    for dtype, how in CONVERTED.items():
        names = [tensor.name_in_file for tensor in tensors if tensor.entry.dtype == dtype]
        if names:
            lines.append(f"{path}: {how} {_count(names)} from {dtype} to F32")
    return lines


def _count(names: list[str]) -> str:
    return f"1 tensor ({names[0]})" if len(names) == 1 else f"{len(names)} tensors ({names[0]}, ...)"
