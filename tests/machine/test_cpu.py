from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from sdrt.machine import cpu


def tree(root: Path, **files: str) -> Path:
    """Write kernel files below another root; in names, __ stands for a slash and _DOT_ for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {"proc__self__cgroup": "0::/user/job\n"}
V1 = {"proc__self__cgroup": "4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n"}
INNER = "sys__fs__cgroup__user__job__cpu_DOT_max"
OUTER = "sys__fs__cgroup__user__cpu_DOT_max"
TOP = "sys__fs__cgroup__cpu_DOT_max"
V1_QUOTA = "sys__fs__cgroup__cpu__job__cpu_DOT_cfs_quota_us"
V1_PERIOD = "sys__fs__cgroup__cpu__job__cpu_DOT_cfs_period_us"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        (V2, None),
        ({**V2, INNER: "max 100000\n"}, None),
        ({**V2, INNER: "150000 100000\n"}, 1.5),
        ({**V2, INNER: "max 100000\n", OUTER: "300000 100000\n"}, 3.0),
        ({**V2, INNER: "400000 100000\n", TOP: "200000 100000\n"}, 2.0),
        ({**V1, V1_QUOTA: "50000\n", V1_PERIOD: "100000\n"}, 0.5),
        ({**V1, V1_QUOTA: "-1\n", V1_PERIOD: "100000\n"}, None),
    ],
)
def test_the_quota_is_the_least_along_the_cgroups(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu.cgroup_quota(tree(tmp_path, **files)) == quota


@pytest.mark.parametrize(
    ("allowed", "quota", "usable"),
    [
        (8, "max 100000", 8),
        (8, "100000 100000", 1),
        (8, "250000 100000", 2),
        (8, "50000 100000", 1),
        (2, "600000 100000", 2),
    ],
)
def test_threads_keep_to_the_affinity_mask_and_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, quota: str, usable: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    assert cpu.usable_cpus(tree(tmp_path, **V2, **{INNER: quota})) == usable


def test_the_mask_of_this_process_is_obeyed() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cpu.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 fma mmx\n", ("avx2", "fma")),
        ("Features\t: fp asimd bf16 crc32\n", ("asimd", "bf16")),
        ("nothing known\n", ()),
    ],
)
def test_features_are_what_the_kernel_lists(tmp_path: Path, text: str, features: tuple[str, ...]) -> None:
    assert cpu.cpu_features(tree(tmp_path, proc__cpuinfo=text)) == features


def test_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    root = tree(tmp_path, proc__meminfo="MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert cpu.available_memory_bytes(root) == 2 << 20
    assert cpu.available_memory_bytes(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("features", "bf16", "simd"),
    [
        (("amx_bf16", "avx2", "avx512bw", "avx512dq", "avx512f", "avx512vl"), True, "avx512"),
        (("avx2", "avx512f"), False, "avx2"),
        (("avx512_bf16",), True, "plain"),
        ((), False, "plain"),
    ],
)
def test_what_the_features_mean(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], bf16: bool, simd: str
) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: features)
    assert cpu.supports_bf16() is bf16
    assert cpu.simd_width() == simd


@pytest.mark.parametrize(
    ("host", "lacking"),
    [
        ({}, None),
        ({"machine": platform.machine(), "cpu_features": "avx2", "simd": "avx2"}, None),
        ({"cpu_features": "avx2 amx_tile amx_bf16"}, "a processor with amx_bf16, amx_tile"),
        ({"machine": "riscv64"}, "a riscv64 processor"),
        # Weights blocked for narrower vectors are as wrong as those for wider ones.
        ({"simd": "plain"}, "a processor whose vectors are plain"),
        ({"simd": "avx512"}, "a processor whose vectors are avx512"),
    ],
)
def test_what_a_set_was_built_for_must_be_here(
    monkeypatch: pytest.MonkeyPatch, host: dict[str, str], lacking: str | None
) -> None:
    monkeypatch.setattr(cpu, "cpu_features", lambda: ("avx2", "fma"))
    assert cpu.unsuited(host) == lacking
