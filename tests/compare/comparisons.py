"""Made-up findings of a comparison."""

from __future__ import annotations

from typing import Any

from sdrt.artefacts.manifest import ComponentName
from sdrt.compare.schema import (
    Compared,
    Comparison,
    ComponentCase,
    ComponentResult,
    Engines,
    Metrics,
    Outcome,
    OutputResult,
    PictureResult,
    SubjectSource,
    ToleranceRecord,
    TrajectoryResult,
)

LIMITS = ToleranceRecord(relative_l2=1e-3, peak=1e-2, measured={"relative_l2": 2e-4}, reason="fp32 sums in any order")
PICTURE_LIMITS = ToleranceRecord(psnr_db=40, ssim=0.98, reason="what nobody sees")


def output(relative_l2: float = 1e-5, outcome: Outcome = "passed", reason: str = "", name: str = "y") -> OutputResult:
    metrics = Metrics(
        max_absolute=relative_l2,
        relative_l2=relative_l2,
        peak=relative_l2,
        cosine=0.999999,
        psnr_db=90.0,
        worst_index=(0, 1, 2),
        worst_reference=1.0,
        worst_candidate=1.0 + relative_l2,
    )
    return OutputResult(output=name, metrics=metrics, tolerance=LIMITS, outcome=outcome, reason=reason)


def component(name: ComponentName, *outputs: OutputResult, **changes: Any) -> ComponentResult:
    found = outputs or (output(),)
    fields: dict[str, Any] = {
        "component": name,
        "backend": "onnxruntime",
        "precision": "fp32",
        "outcome": next((each.outcome for each in found if each.outcome != "passed"), "passed"),
        "reason": next((each.reason for each in found if each.reason), ""),
        "cases": (ComponentCase(label="early, batch 2", batch=2, outputs=found),),
    }
    return ComponentResult(**(fields | changes))


def trajectory(*errors: float, **changes: Any) -> TrajectoryResult:
    errors = errors or (1e-6, 2e-6, 4e-6)
    fields: dict[str, Any] = {
        "prompt": "a red circle",
        "seed": 7,
        "steps": len(errors),
        "relative_l2": errors,
        "grows_at": 1,
        "first_over": None,
        "tolerance": LIMITS,
        "outcome": "passed",
    }
    return TrajectoryResult(**(fields | changes))


def picture(**changes: Any) -> PictureResult:
    fields: dict[str, Any] = {
        "prompt": "a red circle",
        "seed": 7,
        "psnr_db": 60.0,
        "ssim": 0.9999,
        "lpips": None,
        "reference_verdict": "right",
        "candidate_verdict": "right",
        "tolerance": PICTURE_LIMITS,
        "outcome": "passed",
    }
    return PictureResult(**(fields | changes))


def comparison(**changes: Any) -> Comparison:
    fields: dict[str, Any] = {
        "schema_version": 1,
        "sdrt": "0.1.0",
        "outcome": "passed",
        "checkpoint": SubjectSource(name="demo", digest="ab" * 32),
        "compared_with": Compared(name="demo", digest="ab" * 32, mismatch=False),
        "bundle_digest": "cd" * 32,
        "engines": Engines(key="12" * 32, digest="34" * 32),
        "backend": "onnxruntime",
        "precision": "fp32",
        "steps": 3,
        "guidance_scale": 7.5,
        "components": (component("unet"), component("vae_decoder")),
        "trajectories": (trajectory(),),
        "pictures": (picture(),),
        "environment": {"onnxruntime": "1.31", "lpips": "not measured"},
        "created": "2026-11-22T06:00:00Z",
    }
    return Comparison(**(fields | changes))
