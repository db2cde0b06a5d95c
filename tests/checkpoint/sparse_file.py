"""Single files of Stable Diffusion v1's sizes that take no disk space: a real header before a hole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdrt.checkpoint.ldm_names import PREFIXES
from sdrt.checkpoint.ldm_shapes import SHAPES
from sdrt.checkpoint.safetensors_header import DTYPE_BITS, header_bytes
from tests.models.tiny import v1_config

Tensors = dict[str, tuple[str, Sequence[int]]]


def v1_tensors(dtype: str = "F16") -> Tensors:
    """Return types and shapes of a complete checkpoint's tensors by their original names."""
    return {
        prefixes[0] + name: (dtype, shape)
        for component, prefixes in PREFIXES.items()
        for name, shape in SHAPES[component](v1_config(component)).items()
    }


def write_sparse(path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> Path:
    """Write a safetensors file of zeros whose weights are a hole."""
    header = header_bytes(tensors)
    size_bytes = sum(math.prod(shape) * DTYPE_BITS[dtype] // 8 for dtype, shape in tensors.values())
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size_bytes)
    return path
