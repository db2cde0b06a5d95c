"""Runs a saved graph by ONNX Runtime, on the CPU or on a GPU, as the set was built for; never on another silently."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from sdrt.errors import BackendUnavailableError, EngineError
from sdrt.files import utf8_path
from sdrt.install_lines import extra_line, removal_line
from sdrt.runtime.backends.base import Array, Engine, library_error

if TYPE_CHECKING:
    from sdrt.artefacts.bundle import ComponentName
    from sdrt.artefacts.engine_set import EngineComponent

# What a session is asked for: TensorRT hands what it does not take to CUDA, and nothing goes to the CPU.
PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider"],
}
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


def check_provider(provider: str) -> None:
    """Hold that ONNX Runtime was built with a provider; whether it starts shows when a session is made.

    Raises:
        BackendUnavailableError: It was not.
    """
    lacking = set(PROVIDERS[provider]).difference(onnxruntime.get_available_providers())
    if lacking:
        message = f"this onnxruntime has no {' and no '.join(sorted(lacking))}"
        hint = f"{removal_line('onnxruntime')} && {extra_line('gpu')}"
        raise BackendUnavailableError(message, hint=hint)


def open_session(name: str, path: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    """A session that runs on the provider asked for and no other.

    Raises:
        BackendUnavailableError: The provider is missing or does not start.
        EngineError: The graph does not open.
    """
    check_provider(provider)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    if provider == "cpu":
        # The graph was optimised when it was built.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    wanted = PROVIDERS[provider]
    hint = "sdrt doctor says what the driver, CUDA and cuDNN lack; or run with --provider cpu"
    try:
        with utf8_path(path) as spelled:
            session = onnxruntime.InferenceSession(spelled, options, providers=wanted)
    except ERRORS as error:
        failed = library_error(f"onnxruntime cannot open {path}", error)
        if provider == "cpu" or not isinstance(failed, EngineError):
            raise failed from error
        raise BackendUnavailableError(f"{failed.message} (provider {provider})", hint=hint) from error
    # Where a provider does not start, ONNX Runtime goes on without it. The CPU's is always last in the list.
    runs_on = session.get_providers()
    if runs_on[: len(wanted)] != wanted:
        ran = ", ".join(runs_on)
        raise BackendUnavailableError(f"{name} would run on {ran}, not {wanted[0]}", hint=hint)
    return session


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
        session = open_session(name, folder / spec.file, threads, spec.options.get("provider", "cpu"))
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
