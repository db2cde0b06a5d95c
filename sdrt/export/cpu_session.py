"""ONNX Runtime sessions on the CPU, for graphs that an export checks, calibrates or measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdrt.errors import BackendUnavailableError
from sdrt.install_lines import extra_line


def open_cpu_session(model: Path | bytes, *, weights_folder: Path | None = None, prepack: bool = True) -> Any:
    """Open an ONNX Runtime session on the CPU.

    Args:
        model: A graph's file, or a serialized model.
        weights_folder: Folder of the external weights of a serialized model.
        prepack: Let ONNX Runtime keep packed copies of the weights. They pay off over many runs; for the full-size UNet
            they take gigabytes.

    Raises:
        BackendUnavailableError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        hint = f"{extra_line('cpu')}; on an NVIDIA GPU: {extra_line('gpu')}"
        raise BackendUnavailableError("onnxruntime is needed to run graphs and is not installed", hint=hint) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if weights_folder is not None:
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(weights_folder))
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
