"""The child process that reads untrusted graphs: a job on stdin, one line of JSON on stdout for each graph.

It limits its memory and time before it reads a graph. ONNX's checker, if installed, runs after our own checks; its
parser is C++, so a crash on hostile bytes ends only this process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from sdrt.errors import BundleError, SdrtError
from sdrt.files import utf8_path
from sdrt.graphs.structure import HINT, Expected, check_structure

MESSAGE_LIMIT = 300
#: Largest file that it may write: its answers, and the output of libraries.
OUTPUT_LIMIT_BYTES = 1 << 20


def main() -> None:
    """Check the graphs of a job in order and stop at the first refused one."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # The output of libraries goes to stderr, so that it is not taken for an answer.
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.read())
    limit(job["memory_bytes"], job["cpu_s"])
    for graph in job["graphs"]:
        answer = answer_for(Path(graph["path"]), graph["expected"])
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if answer is not None:
            break


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Limit this process's memory and processor time, the files that it writes, and core dumps."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, OUTPUT_LIMIT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, hard))


def answer_for(path: Path, expected: dict[str, Any] | None) -> dict[str, str] | None:
    """Check a graph; return kind, message and hint of the error, or None for a valid graph."""
    try:
        check_structure(path, None if expected is None else _expected(expected))
        check_by_onnx(path)
    except SdrtError as error:
        return {"kind": type(error).__name__, "message": error.message[:MESSAGE_LIMIT], "hint": error.hint}
    return None


def check_by_onnx(path: Path) -> None:
    """Check a graph by ONNX's checker and shape inference, if the onnx package is installed.

    Raises:
        BundleError: The checker refuses it.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        return
    refusals = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError)
    try:
        with utf8_path(path) as spelled:
            onnx.checker.check_model(str(spelled), full_check=True)
    except refusals as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path} is refused by ONNX's checker: {reason}", hint=HINT) from error


def _expected(fields: dict[str, Any]) -> Expected:
    inputs, outputs = (
        tuple((name, dtype, tuple(shape)) for name, dtype, shape in fields[side]) for side in ("inputs", "outputs")
    )
    return Expected(inputs, outputs, fields["weights"], fields["opset"])


if __name__ == "__main__":
    main()
