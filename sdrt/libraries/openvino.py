"""Loading of OpenVINO without its telemetry, the process's Core, and the settings of a compiled model."""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sdrt.machine.cpu import supports_bf16

if TYPE_CHECKING:
    from openvino import Core


INFERENCE_PRECISION = {"fp32": "f32", "bf16": "bf16"}


def inference_precision(precision: str) -> str:
    """Return OpenVINO's INFERENCE_PRECISION_HINT for a precision.

    An int8 graph quantises its own products; everything else in it is computed in bf16 if the processor supports it,
    else in f32.
    """
    if precision == "int8":
        return INFERENCE_PRECISION["bf16" if supports_bf16() else "fp32"]
    return INFERENCE_PRECISION[precision]


def load_library() -> ModuleType:
    """Import OpenVINO without its telemetry.

    By default, ``import openvino`` sends an event to Intel unless the user has opted out, starts a process for that and
    writes ~/intel. If the telemetry package cannot be imported, OpenVINO uses a stub that does nothing.
    """
    name = "openvino_telemetry"
    if "openvino" in sys.modules or name in sys.modules:
        return import_module("openvino")
    sys.modules[name] = None  # type: ignore[assignment]  # the import system's mark of "not to be found"
    try:
        return import_module("openvino")
    finally:
        del sys.modules[name]


@cache
def core() -> Core:
    """Return the process's only Core, which lives as long as the process.

    The CPU plugin of a Core installs its own stack for signal handlers in the thread that loads it, and restores the
    previous one when it is destroyed. If two Cores are not destroyed in the reverse order of their creation, the thread
    is left with freed memory as that stack, and the next signal ends the process by SIGSEGV.
    """
    made: Core = load_library().Core()
    return made


def cpu_config(precision: str, threads: int) -> dict[str, Any]:
    """Return OpenVINO's settings for one request at a time.

    The precision is always set: by default OpenVINO computes in bf16 if the processor supports it. Threads are not
    pinned: a pinned thread waits for other work on its core (docs/decisions/0011).
    """
    return {
        "INFERENCE_PRECISION_HINT": inference_precision(precision),
        "EXECUTION_MODE_HINT": "ACCURACY" if precision == "fp32" else "PERFORMANCE",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
        "CACHE_DIR": "",
    }
