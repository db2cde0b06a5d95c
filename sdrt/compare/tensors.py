"""A comparison's inputs and PyTorch's outputs in Polygraphy's own format, whose command line measures relative L2."""

from __future__ import annotations

import math
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.engine_set import EngineComponent
from sdrt.artefacts.manifest import ComponentName
from sdrt.compare.components import CAUSAL
from sdrt.compare.inputs import Array, Inputs
from sdrt.compare.runners import candidate
from sdrt.compare.schema import ToleranceRecord
from sdrt.compare.tolerances import Tolerances
from sdrt.errors import UsageError
from sdrt.files import disk_errors, folder_published_as

if TYPE_CHECKING:
    from sdrt.compare.reference import Reference

INPUTS, OUTPUTS = "inputs.json", "outputs.json"


def save_tensors(
    folder: Path, reference: Reference, bundle: Bundle, inputs: Inputs, tolerances: Tolerances
) -> tuple[str, ...]:
    """Write ``COMPONENT/inputs.json`` and ``COMPONENT/outputs.json`` for each component of a bundle.

    Inputs have the types that its graph takes; outputs are PyTorch's in fp32. Tensors that were saved at ``folder``
    earlier are replaced.

    Returns:
        For each component the command that holds its graph, run by ONNX Runtime, to our limit of relative L2, quoted
        for the shell.

    Raises:
        UsageError: The folder holds what was not saved here.
        ResourceError: The folder cannot be written.
    """
    check_replaceable(folder)
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
                said.append(shlex.join(["polygraphy", "run", str(bundle.graph(name)), "--onnxrt", *held]))
    return tuple(said)


def check_replaceable(folder: Path) -> None:
    """Hold that nothing is lost when a folder is replaced: it is missing, or holds nothing but saved tensors.

    Raises:
        UsageError: It holds something else, or is none.
    """
    foreign = _foreign(folder)
    if foreign is not None:
        hint = "name another folder with --report, or move that away"
        raise UsageError(f"--save-tensors replaces {folder}, and {foreign} was not saved by it", hint=hint)


def remove_tensors(folder: Path) -> None:
    """Remove tensors that were saved with an earlier report; what else is at ``folder`` stays.

    Raises:
        ResourceError: They cannot be removed.
    """
    if folder.is_dir() and _foreign(folder) is None:
        with disk_errors(folder):
            shutil.rmtree(folder)


def _foreign(folder: Path) -> Path | None:
    """Something at a place that `save_tensors` does not write; None where there is nothing else."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        return folder
    inside = sorted(folder.iterdir()) if folder.exists() else []
    for each in inside:
        if each.name not in CAUSAL or each.is_symlink() or not each.is_dir():
            return each
        for file in each.iterdir():
            if file.name not in (INPUTS, OUTPUTS) or not file.is_file():
                return file
    return None


def arguments(folder: Path, tolerance: ToleranceRecord | None) -> tuple[str, ...]:
    """What `polygraphy run` is told to hold our limit of relative L2; where there is none, its own default holds."""
    limit = tolerance.relative_l2 if tolerance else None
    held = () if limit is None else ("--snr-threshold", f"{snr_db(limit):.5g}")
    files = ("--load-inputs", str(folder / INPUTS), "--load-outputs", str(folder / OUTPUTS))
    return (*files, "--validate", "--compare", "snr", *held)


def snr_db(relative_l2: float) -> float:
    """The signal-to-noise ratio that Polygraphy measures, from our relative L2: 20 log10(||reference|| / ||error||).

    Infinite for 0, as Polygraphy has it of tensors that are equal.
    """
    return -20 * math.log10(relative_l2) if relative_l2 else math.inf


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
