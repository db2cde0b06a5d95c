"""Benchmark results with made-up numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdrt.bench.schema import Bench, BenchSettings, Ceiling, Cold, ContenderResult, Point, Ratio, Warm
from sdrt.bench.statistics import paired, sample

STEPS = 10


def contender(name: str, total: Sequence[float], **changes: Any) -> ContenderResult:
    """Build a contender whose UNet takes three quarters of a request and whose start takes two requests' time."""
    seconds = sample(total)
    warm = Warm(
        batch=1,
        total=seconds,
        unet_step=sample([0.75 * value / STEPS for value in total]),
        text_encoder=None,
        unet=sample([0.75 * value for value in total]),
        vae_decoder=sample([0.2 * value for value in total]),
        pictures_a_minute=60 / seconds.p50,
        peak_memory_bytes=300 << 20,
        device_bytes=None,
    )
    starts = sample([2 * value for value in total])
    fields: dict[str, Any] = {
        "name": name,
        "ours": name.startswith("sdrt"),
        "backend": "openvino",
        "precision": "bf16",
        "threads": 2,
        "scheduler": "LMS",
        "how": "by hand",
        "cold": Cold(imported=starts, loaded=starts, first_step=starts, picture=starts),
        "warm": (warm,),
    }
    return ContenderResult(**(fields | changes))


def bench(*contenders: ContenderResult, gflops: float = 500.0, **changes: Any) -> Bench:
    """Build a benchmark of the contenders on a machine with the given ceiling."""
    fields: dict[str, Any] = {
        "schema_version": 1,
        "sdrt": "0",
        "created": "2026-01-01T00:00:00+00:00",
        "checkpoint": "demo",
        "checkpoint_digest": "ab" * 32,
        "bundle_digest": "cd" * 32,
        "settings": BenchSettings(
            steps=STEPS, guidance_scale=7.5, threads=2, batches=(1,), rounds=3, cold_rounds=1, prompt="a | b"
        ),
        "machine": {"processor": "a processor", "cpus": "2", "gpu": "none"},
        "versions": {"numpy": "2"},
        "contenders": contenders,
        "ratios": (),
        "ceilings": (Ceiling(precision="bf16", gflops=sample([gflops] * 3), library="torch"),),
        "copy_bytes_a_second": sample([5e9]),
        "points": (),
    }
    return Bench(**(fields | changes))


def ratio(of: ContenderResult, peer: ContenderResult) -> Ratio:
    """Build a ratio of whole requests."""
    quotient = paired(peer.warm[0].total.values, of.warm[0].total.values)
    return Ratio(
        of=of.name,
        peer=peer.name,
        figure="total",
        batch=1,
        equal_precision=True,
        sample=quotient,
        max=max(quotient.values),
    )


def point(name: str, gflops: float, least_bytes: int) -> Point:
    """Build a UNet's point on the roofline, of 1 GFLOP."""
    return Point(
        contender=name,
        component="unet",
        batch=1,
        precision="bf16",
        flops=10**9,
        least_bytes=least_bytes,
        gflops=gflops,
        share=sample([gflops / 500]),
    )
