"""Runs a saved graph by ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from sdrt.errors import BackendUnavailableError, EngineError
from sdrt.runtime.backends.base import Array, Engine, library_error

if TYPE_CHECKING:
    from sdrt.bundle import ComponentName
    from sdrt.engines.engine_set import EngineComponent

PROVIDER = "CPUExecutionProvider"
# ONNX Runtime's exceptions have no base class of their own.
ERRORS: tuple[type[Exception], ...] = (
    states.EPFail,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.NoSuchFile,
    states.NotImplemented,
    states.RuntimeException,
    MemoryError,
    RuntimeError,
)


class OnnxRuntimeEngine(Engine):
    """One ONNX Runtime session.

    Args:
        folder: The engine set's folder, verified.
        threads: Threads inside one operator.

    Raises:
        EngineError: The graph does not open, or its inputs and outputs are not the spec's.
        BackendUnavailableError: The session does not run on the provider asked for.
    """

    def __init__(self, name: ComponentName, spec: EngineComponent, folder: Path, threads: int) -> None:
        super().__init__(name, spec)
        options = onnxruntime.SessionOptions()
        # The graph was optimised when it was built.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(folder / spec.file, options, providers=[PROVIDER])
        except ERRORS as error:
            raise library_error(f"onnxruntime cannot open {folder / spec.file}", error) from error
        if session.get_providers() != [PROVIDER]:
            ran = ", ".join(session.get_providers())
            raise BackendUnavailableError(f"{name} would run on {ran}, not {PROVIDER}", hint="reinstall onnxruntime")
        for kind, nodes, specs in (
            ("inputs", session.get_inputs(), spec.inputs),
            ("outputs", session.get_outputs(), spec.outputs),
        ):
            found = [node.name for node in nodes]
            if sorted(found) != sorted(wanted.name for wanted in specs):
                raise EngineError(f"{folder / spec.file} has the {kind} {', '.join(found)}", hint="build it again")
        self._session: onnxruntime.InferenceSession | None = session
        self._outputs = [output.name for output in spec.outputs]

    def execute(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run the session; it makes new arrays each time."""
        if self._session is None:
            raise EngineError(f"{self.name} is closed", hint="open it again")
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        except ERRORS as error:
            raise library_error(f"{self.name} failed", error) from error

    def release(self) -> None:
        """Let go of what the library holds."""
        self._session = None
