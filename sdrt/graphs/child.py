"""The process that reads graphs of strangers: a job on stdin, one line of JSON on stdout for each graph.

It limits itself before it reads anything. After our own checks ONNX's checker has its turn, where it is installed; its
parser is C++, and what it makes of hostile bytes stays in this process.
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
#: Most that it may write: its answers, and what a library says.
OUTPUT_LIMIT_BYTES = 1 << 20


def main() -> None:
    """Check the graphs of a job, in order, up to the first that is refused."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What libraries print must not be taken for an answer.
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
    """Take no more memory or processor time than this, from now on; write no large file and no core dump."""
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
    """What is wrong with a graph: kind, message and hint of an error of ours; None for a sound one."""
    try:
        check_structure(path, None if expected is None else _expected(expected))
        check_by_onnx(path)
    except SdrtError as error:
        return {"kind": type(error).__name__, "message": error.message[:MESSAGE_LIMIT], "hint": error.hint}
    return None


def check_by_onnx(path: Path) -> None:
    """Hold a graph against ONNX's operators and infer its shapes, where the onnx package is installed.

    Raises:
        BundleError: It is refused.
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
