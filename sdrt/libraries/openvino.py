"""OpenVINO without its telemetry, its one core, and its settings."""

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
    """What OpenVINO computes in, by its own name.

    In int8 the products are the graph's own business; all else is computed in bf16 where the processor does, or in f32.
    """
    if precision == "int8":
        return INFERENCE_PRECISION["bf16" if supports_bf16() else "fp32"]
    return INFERENCE_PRECISION[precision]


def load_library() -> ModuleType:
    """Import OpenVINO without its telemetry.

    Left alone, ``import openvino`` sends an event to its makers unless the user has opted out, starts a process for it
    and writes ~/intel. Where the telemetry package cannot be imported, it takes a stub that does nothing.
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
    """The process's one core, which lives as long as it does.

    Each core's CPU plugin gives the thread that loads it a stack for signal handlers of its own, and puts back the one
    it found when it goes. Of two cores that do not go in the reverse order of their coming, the second leaves the
    thread with the first one's freed memory as that stack, and the next signal ends the process by SIGSEGV.
    """
    made: Core = load_library().Core()
    return made


def cpu_config(precision: str, threads: int) -> dict[str, Any]:
    """OpenVINO's settings for one request at a time.

    The precision is always given: left out, OpenVINO takes bf16 wherever the processor has it. Threads are not pinned:
    a pinned thread waits for whatever else runs on its core (docs/decisions/0011).
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
