"""A comparison's inputs and PyTorch's outputs in Polygraphy's own format: its command line gives the same verdict."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.bundle import Bundle, ComponentName
from sdrt.compare.components import CAUSAL
from sdrt.compare.inputs import Array, Inputs
from sdrt.compare.runners import candidate
from sdrt.compare.schema import ToleranceRecord
from sdrt.compare.tolerances import Tolerances
from sdrt.engines.engine_set import EngineComponent
from sdrt.files import folder_published_as

if TYPE_CHECKING:
    from sdrt.compare.reference import Reference

INPUTS, OUTPUTS = "inputs.json", "outputs.json"


def save_tensors(
    folder: Path, reference: Reference, bundle: Bundle, inputs: Inputs, tolerances: Tolerances
) -> tuple[str, ...]:
    """Write ``COMPONENT/inputs.json`` and ``COMPONENT/outputs.json`` for each component of a bundle.

    Inputs have the types that its graph takes; outputs are PyTorch's in fp32. What was at ``folder`` is replaced.

    Returns:
        For each component the command that holds its graph, run by ONNX Runtime, to our tolerance.

    Raises:
        ResourceError: The folder cannot be written.
    """
    parts = candidate(bundle).parts
    said = []
    with folder_published_as(folder) as staged:
        for name in (each for each in CAUSAL if each in parts):
            cases = inputs.cases(name, None)
            if cases:
                (staged / name).mkdir()
                _save(staged / name, name, reference, parts[name], [case.feeds for case in cases])
                tolerance = tolerances.of(name, "onnxruntime", parts[name].precision)
                held = arguments(folder / name, tolerance)
                said.append(f"polygraphy run {bundle.graph(name)} --onnxrt {held}")
    return tuple(said)


def arguments(folder: Path, tolerance: ToleranceRecord | None) -> str:
    """What `polygraphy run` is told to give our verdict; with no limit of relative L2, its own default holds."""
    limit = tolerance.relative_l2 if tolerance else None
    held = "" if limit is None else f" --snr-threshold {snr_db(limit):.5g}"
    return f"--load-inputs {folder / INPUTS} --load-outputs {folder / OUTPUTS} --validate --compare snr{held}"


def snr_db(relative_l2: float) -> float:
    """The signal-to-noise ratio that Polygraphy measures, from our relative L2: 20 log10(||reference|| / ||error||)."""
    return -20 * math.log10(relative_l2)


def _save(
    folder: Path, name: ComponentName, reference: Reference, part: EngineComponent, feeds: list[dict[str, Array]]
) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json
    from polygraphy.logger import G_LOGGER

    dtypes = {spec.name: spec.dtype for spec in part.inputs}
    given = [{key: array.astype(dtypes[key], copy=False) for key, array in case.items()} for case in feeds]
    results = RunResults()
    results.add([reference.run(name, case) for case in feeds], runner_name="torch fp32")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        save_json(given, str(folder / INPUTS))
        results.save(str(folder / OUTPUTS))
