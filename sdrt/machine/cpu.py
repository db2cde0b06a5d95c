"""Facts about this machine's processor: how many cores this process may use, and what they can compute."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

# The instruction sets that change what a compiler of ours emits, as Linux names them in /proc/cpuinfo.
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
    """Processors this process may keep busy: its affinity mask, cut to the whole CPUs of its cgroup's quota.

    Args:
        root: Where /proc and /sys are found.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota(root)
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroup's quota grants (the least along its ancestors), or None when nothing limits them.

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
    """The quotas of a cgroup and its ancestors. Inside a container the mount itself is often the group."""
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
    """The instruction sets of `RELEVANT_FEATURES` that every core has, sorted; empty where the system does not say."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(RELEVANT_FEATURES.intersection(value.split())))
    return ()


def processor_name(root: Path = Path("/")) -> str:
    """The processor's own name, or its kind where the system does not tell."""
    for line in _read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def supports_bf16() -> bool:
    """Whether matrix products in bf16 are native here: AMX, AVX512-BF16 or Arm's BF16 extension."""
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(cpu_features())


def simd_width() -> str:
    """The vector extension by which ONNX Runtime blocks weights: avx512, avx2, or the processor's plain one."""
    features = set(cpu_features())
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= features:
        return "avx512"
    return "avx2" if "avx2" in features else "plain"


def unsuited(host: Mapping[str, str]) -> str | None:
    """What this machine lacks that a set was built for, or None.

    Args:
        host: The set's record. Its machine and simd must be this machine's; its cpu_features must all be here.
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
    """Memory that can be taken without swapping, as /proc/meminfo has it; None where the system does not say."""
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read(path: Path) -> str:
    """A small text file of the kernel's, or nothing when it is not there."""
    try:
        return path.read_text()
    except OSError:
        return ""
