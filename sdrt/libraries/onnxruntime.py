"""ONNX Runtime sessions that run on the requested provider and no other."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as states

from sdrt.errors import BackendUnavailableError, EngineError
from sdrt.files import utf8_path
from sdrt.install_lines import extra_line, removal_line
from sdrt.libraries.errors import library_error

# Execution providers of a session: nodes that TensorRT does not support run on CUDA, and none on the CPU.
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
    """Raise BackendUnavailableError unless ONNX Runtime was built with a provider.

    Whether the provider starts is known only once a session is created.

    Raises:
        BackendUnavailableError: This ONNX Runtime lacks the provider.
    """
    lacking = set(PROVIDERS[provider]).difference(onnxruntime.get_available_providers())
    if lacking:
        message = f"this onnxruntime has no {' and no '.join(sorted(lacking))}"
        hint = f"{removal_line('onnxruntime')} && {extra_line('gpu')}"
        raise BackendUnavailableError(message, hint=hint)


def open_session(name: str, path: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    """Open a session that runs on the requested provider and no other.

    Args:
        name: Component, as errors name it.
        path: The graph.
        threads: Threads inside one operator.
        provider: A key of `PROVIDERS`.

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
    # If a provider does not start, ONNX Runtime continues without it. The CPU's is always last in the list.
    runs_on = session.get_providers()
    if runs_on[: len(wanted)] != wanted:
        ran = ", ".join(runs_on)
        raise BackendUnavailableError(f"{name} would run on {ran}, not {wanted[0]}", hint=hint)
    return session
