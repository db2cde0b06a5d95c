"""Validation of ONNX graphs in a child process, with limits on memory and time, before any library opens them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import ValidationError

from sdrt import errors
from sdrt.artefacts.bundle import Bundle
from sdrt.artefacts.manifest import ComponentName, Record
from sdrt.errors import BundleError, TrustError
from sdrt.files import path_inside, temporary_file
from sdrt.graphs.contract import contract, specs
from sdrt.graphs.structure import HINT, differing

MODULE = "sdrt.graphs.child"
LAST_WORDS_BYTES = 4096


@dataclass(frozen=True)
class Limits:
    """Limits of the child process. The demo's bundle takes 124 MB and 0.4 s.

    Attributes:
        memory_bytes: Address space.
        cpu_s: Seconds of processor time, which do not depend on other processes.
        wall_s: Seconds of wall-clock time.
    """

    memory_bytes: int = 2 << 30
    cpu_s: int = 60
    wall_s: float = 900.0


LIMITS = Limits()


class Refusal(Record):
    """The child's error about a refused graph."""

    kind: Literal["BundleError", "TrustError"]
    message: str
    hint: str


def validate_graph(path: Path, limits: Limits = LIMITS) -> None:
    """Validate an .onnx file outside a bundle.

    Raises:
        BundleError: It is not a graph such as sdrt exports; or the process that read it died, or reached a limit.
        TrustError: It or its weights are links, or its weights are outside its folder.
    """
    _check_is_there(path)
    _run([{"path": str(path.absolute()), "expected": None}], limits)


def validate_bundle(bundle: Bundle, limits: Limits = LIMITS) -> None:
    """Validate the contract and the graph of every component of an opened bundle.

    Raises:
        BundleError: A component breaks the contract, or its graph differs from the manifest or is not such as sdrt
            exports; or the process that read it died, or reached a limit.
        TrustError: A graph is a link, or reads weights from a file that the manifest does not name.
    """
    jobs = []
    for name in bundle.manifest.components:
        _check_contract(bundle, name)
        jobs.append(_job(bundle, name))
    _run(jobs, limits)


#: Number of validated bundles that a process remembers.
REMEMBERED_BUNDLES = 256
#: Path and digest of the bundles that this process has validated.
_validated: set[tuple[Path, str]] = set()


def validate_once(bundle: Bundle) -> None:
    """Validate a bundle, once in each process.

    Raises:
        BundleError, TrustError: As `validate_bundle`.
    """
    key = bundle.path.absolute(), bundle.digest
    if key not in _validated:
        validate_bundle(bundle)
        if len(_validated) >= REMEMBERED_BUNDLES:
            _validated.clear()
        _validated.add(key)


def _check_contract(bundle: Bundle, name: ComponentName) -> None:
    component = bundle.manifest.components[name]
    wanted = contract(name, component, bundle.manifest.model)
    for side, found, expected in zip(("inputs", "outputs"), (component.inputs, component.outputs), wanted, strict=True):
        if differences := differing(specs(found), expected):
            raise BundleError(f"{bundle.path}: {side} of {name} differ from its contract: {differences}", hint=HINT)


def _job(bundle: Bundle, name: ComponentName) -> dict[str, Any]:
    component = bundle.manifest.components[name]
    graph = bundle.path / component.graph
    _check_is_there(path_inside(bundle.path, component.graph))
    weights = Path(component.weights) if component.weights else None
    if weights is not None and weights.parent != Path(component.graph).parent:
        raise BundleError(f"{graph} has its weights in another folder, {weights}", hint=HINT)
    expected = {
        "inputs": specs(component.inputs),
        "outputs": specs(component.outputs),
        "weights": weights.name if weights else None,
        "opset": bundle.manifest.opset,
    }
    return {"path": str(graph.absolute()), "expected": expected}


def _check_is_there(path: Path) -> None:
    if not path_inside(path.parent, path.name).exists():
        raise BundleError(f"{path} is missing", hint=HINT)


def _run(graphs: Sequence[dict[str, Any]], limits: Limits) -> None:
    """Check the graphs in order in the child process; this process does not read them."""
    job = {"graphs": graphs, "memory_bytes": limits.memory_bytes, "cpu_s": limits.cpu_s}
    with temporary_file() as answers, temporary_file() as log:
        code = _spawn(json.dumps(job).encode(), answers, log, limits.wall_s)
        answers.seek(0)
        lines = answers.read().splitlines()
        for line in lines:
            _raise_refusal(line)
        if code != 0 or len(lines) != len(graphs):
            path = graphs[min(len(lines), len(graphs) - 1)]["path"]
            raise BundleError(f"{path} cannot be validated: {_ended(code, log, limits)}", hint=HINT)


def _raise_refusal(line: bytes) -> None:
    """Raise the error in a line of the child; a malformed line is an error too."""
    if line == b"null":
        return
    try:
        refusal = Refusal.model_validate_json(line)
    except ValidationError as error:
        raise BundleError(
            "a graph cannot be validated: the process that read it gave a malformed answer", hint=HINT
        ) from error
    kinds = {"BundleError": BundleError, "TrustError": TrustError}
    raise kinds[refusal.kind](refusal.message, hint=refusal.hint)


def _spawn(job: bytes, answers: IO[bytes], log: IO[bytes], wall_s: float) -> int | None:
    """Run the child; return its exit code, negative for a signal, or None if it took longer than ``wall_s``."""
    # The child imports from this process's path, but not from the current folder.
    places = [str(Path(errors.__file__).parent.parent), *filter(None, sys.path)]
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        return subprocess.run(
            [sys.executable, "-P", "-m", MODULE],
            input=job,
            stdout=answers,
            stderr=log,
            env={**os.environ, **single, "PYTHONPATH": os.pathsep.join(places)},
            timeout=wall_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return None


def _ended(code: int | None, log: IO[bytes], limits: Limits) -> str:
    """Return how the child ended, in words."""
    if code is None:
        return f"it took more than {limits.wall_s:g} s"
    if code == -signal.SIGXCPU:
        return f"it took more than {limits.cpu_s} s of processor time"
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LAST_WORDS_BYTES))
    said = log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
    if "MemoryError" in said[-1] or "bad_alloc" in said[-1]:
        return f"it needs more than {limits.memory_bytes >> 20} MiB of memory"
    ended = f"died of signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the process that read it {ended}; its last output: {said[-1][:200]}"
