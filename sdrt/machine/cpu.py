"""Facts about this machine's processor: usable CPUs, instruction sets and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# Instruction sets that change what the backends' compilers emit, as /proc/cpuinfo of Linux names them.
RELEVANT_FEATURES = frozenset(
    {
        "avx2",
        "fma",
        "f16c",
        "avx_vnni",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
    }
    | {"amx_bf16", "amx_int8", "amx_fp16", "asimd", "asimdhp", "bf16", "i8mm", "sve"}
)


def usable_cpus(root: Path = Path("/")) -> int:
    """Return the number of CPUs this process may use: its affinity mask, limited to its cgroup's quota rounded down.

    Args:
        root: Folder that holds /proc and /sys.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of the process's cgroup (the least along its ancestors), or None without a limit.

    Reads cpu.max (cgroup v2) and cpu.cfs_quota_us with cpu.cfs_period_us (v1).
    """
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ("sys/fs/cgroup",) if not controllers else ("sys/fs/cgroup/cpu", "sys/fs/cgroup/cpu,cpuacct")
        for mount in mounts:
            quotas += _quotas_along(root / mount, group)
    return min(quotas, default=None)


def _quotas_along(mount: Path, group: str) -> list[float]:
    """Return the quotas of a cgroup and its ancestors. Inside a container the mount itself is often the group."""
    quotas = []
    folder = mount / group.lstrip("/")
    while folder.is_relative_to(mount):
        limits = _read(folder / "cpu.max").split() or (
            _read(folder / "cpu.cfs_quota_us").split() + _read(folder / "cpu.cfs_period_us").split()
        )
        if len(limits) == 2 and limits[0] not in ("max", "-1") and int(limits[1]) > 0:
            quotas.append(int(limits[0]) / int(limits[1]))
        folder = folder.parent
    return quotas


@cache
def cpu_features(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the sorted `RELEVANT_FEATURES` that every core has; none if the system does not report them."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(RELEVANT_FEATURES.intersection(value.split())))
    return ()


def processor_name(root: Path = Path("/")) -> str:
    """Return the processor's model name, or its architecture if the system does not report one."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def supports_bf16() -> bool:
    """Return whether this processor multiplies bf16 matrices natively: AMX, AVX512-BF16 or Arm's BF16 extension."""
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(cpu_features())


def simd_width() -> str:
    """Return the vector extension by which ONNX Runtime blocks weights: "avx512", "avx2" or "plain"."""
    features = set(cpu_features())
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features:
        return "avx512"
    return "avx2" if "avx2" in features else "plain"


def unsuited(host: Mapping[str, str]) -> str | None:
    """Return the kind of processor that a set was built for, if this machine is not of that kind; else None.

    Args:
        host: Host record of the set: its machine and simd must equal this machine's, which must have all its
            cpu_features.
    """
    missing = set(host.get("cpu_features", "").split()).difference(cpu_features())
    if missing:
        return "a processor with " + ", ".join(sorted(missing))
    if host.get("machine", platform.machine()) != platform.machine():
        return f"a {host['machine']} processor"
    if host.get("simd", simd_width()) != simd_width():
        return f"a processor whose vectors are {host['simd']}"
    return None


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return MemAvailable of /proc/meminfo in bytes; None if the system does not report it."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: Path) -> str:
    """Return the text of a file, "" if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
