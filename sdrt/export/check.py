"""Hold an exported graph against the torch module it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sdrt.errors import NumericError
from sdrt.export.components import EXAMPLE_BATCH, Source

#: Relative L2 error that an exported graph may have against its torch module, by precision. In fp32 both sides compute
#: the same operators in another order (measured up to 6e-5, on a VAE of random weights). In fp16 torch rounds every
#: intermediate to 11 bits where ONNX Runtime's CPU keeps fp32 inside an operator (measured up to 4e-3).
TOLERANCES = {"fp32": 3e-4, "fp16": 2e-2}


def relative_l2(actual: np.ndarray, expected: np.ndarray) -> float:
    """||actual - expected|| / ||expected|| in float64; Inf where shapes differ or a value is not finite."""
    if actual.shape != expected.shape or not actual.size:
        return float("inf")
    difference = actual.astype(np.float64) - expected.astype(np.float64)
    error = float(np.linalg.norm(difference) / max(float(np.linalg.norm(expected.astype(np.float64))), 1e-30))
    return error if np.isfinite(error) else float("inf")


def check_graph(source: Source, path: Path, dtype: torch.dtype, precision: str) -> float:
    """Run the graph in ONNX Runtime on a batch that the exporter did not see, and compare with torch.

    Returns:
        The relative L2 error of the output.

    Raises:
        NumericError: It is over the tolerance of the precision.
    """
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(path))
    example = source.example(EXAMPLE_BATCH + 1, dtype, seed=1)
    with torch.no_grad():
        expected = source.module(**example).float().numpy()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {name: value.numpy() for name, value in example.items()})
    error = relative_l2(np.asarray(actual), expected)
    if error > TOLERANCES[precision]:
        raise NumericError(
            f"{source.name}: the exported graph differs from torch by {error:.2g} (relative L2); "
            f"{TOLERANCES[precision]:.0e} is allowed in {precision}",
            hint="export in fp32, or report this with the checkpoint's config",
        )
    return error
