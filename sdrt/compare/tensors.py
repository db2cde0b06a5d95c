"""A comparison's inputs and PyTorch's outputs in Polygraphy's own format, for ``polygraphy run``."""

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

    Inputs have the dtypes of its graph; outputs are PyTorch's in fp32. Tensors saved at ``folder`` earlier are
    replaced.

    Returns:
        For each component a command, quoted for the shell, that runs its graph by ONNX Runtime and checks the outputs
        against our limit of relative L2.

    Raises:
        UsageError: The folder holds something else than saved tensors.
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
                options = arguments(folder / name, tolerance)
                said.append(shlex.join(["polygraphy", "run", str(bundle.graph(name)), "--onnxrt", *options]))
    return tuple(said)


def check_replaceable(folder: Path) -> None:
    """Raise UsageError unless a folder can be replaced: it is missing, or holds only saved tensors.

    Raises:
        UsageError: It holds something else, or is not a folder.
    """
    foreign = _foreign(folder)
    if foreign is not None:
        hint = "choose another folder with --report, or move that file away"
        raise UsageError(f"--save-tensors replaces {folder}, and {foreign} was not saved by it", hint=hint)


def remove_tensors(folder: Path) -> None:
    """Remove the tensors of an earlier report; a folder that holds anything else is kept.

    Raises:
        ResourceError: They cannot be removed.
    """
    if folder.is_dir() and _foreign(folder) is None:
        with disk_errors(folder):
            shutil.rmtree(folder)


def _foreign(folder: Path) -> Path | None:
    """Return a path in the folder that `save_tensors` does not write; None if there is none."""
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
    """Return the options of ``polygraphy run`` for our limit of relative L2; without one, its default applies."""
    limit = tolerance.relative_l2 if tolerance else None
    threshold = () if limit is None else ("--snr-threshold", f"{snr_db(limit):.5g}")
    files = ("--load-inputs", str(folder / INPUTS), "--load-outputs", str(folder / OUTPUTS))
    return (*files, "--validate", "--compare", "snr", *threshold)


def snr_db(relative_l2: float) -> float:
    """Convert relative L2 to Polygraphy's signal-to-noise ratio in dB: 20 log10(||reference|| / ||error||).

    Infinite for 0, as in Polygraphy.
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
