"""Inventory of the machine compared with doctor and auto; and the errors of a device that failed."""

from __future__ import annotations

import contextlib
import subprocess
from typing import get_args

from sdrt.doctor import examine
from sdrt.engines.recipe import Target
from sdrt.errors import BackendUnavailableError
from tools.gpu_day.findings import Findings, Skipped
from tools.gpu_day.workbench import Workbench

NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.free,clocks.sm,clocks.max.sm,ecc.mode.current,temperature.gpu",
    "--format=csv,noheader",
)


def inventory(found: Findings, bench: Workbench) -> None:
    """Compare doctor's report with CUDA's."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        listed = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, timeout=20, check=False)
        found.fact("nvidia-smi", listed.stdout.strip() or listed.stderr.strip())
    told = examine(bench.store)
    for name in ("gpu", "auto", "python", "processor"):
        found.fact(name, told[name])
    found.fact("packages", {entry["name"]: entry["version"] for entry in told["packages"] if entry["version"]})
    runs = {entry["backend"]: entry["runs"] for entry in told["backends"]}
    found.fact("backends", {entry["backend"]: entry["reason"] or "runs" for entry in told["backends"]})
    gpus = told["gpu"].get("gpus") or []
    found.check("doctor sees a GPU", bool(gpus), told["gpu"].get("problem", ""))
    found.check("auto is a backend that runs", runs.get(told["auto"], False), told["auto"])
    with contextlib.suppress(Skipped):
        cuda = bench.cuda()
        name, architecture = cuda.device_name(), cuda.compute_capability()
        found.fact("CUDA's first GPU", f"{name}, {architecture}, {cuda.free_bytes()} bytes free")
        seen = [(gpu["name"], gpu["architecture"]) for gpu in gpus]
        found.check("doctor's first GPU is CUDA's", seen[:1] == [(name, architecture)], seen)
        served = architecture in get_args(Target)
        found.check("RTX is promised only where it runs", served or not runs.get("tensorrt-rtx"), architecture)


def lost(found: Findings, bench: Workbench) -> None:
    """Make a kernel read outside memory: every later call must report that the GPU failed, except freeing."""
    cuda = bench.cuda()
    stream, block = cuda.stream(), cuda.allocate(256)
    found.fact("the kernel gave", bench.break_device(cuda))
    try:
        cuda.wait(stream)
    except BackendUnavailableError as error:
        found.check("a lost device is reported as one", True, error.message)
    else:
        found.check("a lost device is reported as one", False, "waiting succeeded")
    found.check("it is known to be lost", cuda.lost)
    cuda.free(block)
    found.check("freeing on it is silent", True)
