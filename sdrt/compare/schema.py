"""What a comparison found, as it is written to JSON: every number, the tolerance it was held to, and the verdict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from sdrt.artefacts.manifest import ComponentName, Digest, Precision, Record

SCHEMA_VERSION = 1
Outcome = Literal["passed", "failed", "unverified"]
Kind = Literal["component", "trajectory", "picture"]
Share = Annotated[float, Field(ge=0)]


class Metrics(Record):
    """How far a candidate tensor lies from the reference; both are finite and of one shape.

    ``relative_l2`` is ||candidate - reference|| / ||reference||, ``peak`` the largest absolute difference over the
    largest absolute value of the reference, ``psnr_db`` the peak signal-to-noise ratio over the reference's range,
    None where the two are equal. ``worst_index`` is where the largest absolute difference is, ``worst_reference`` and
    ``worst_candidate`` are what stands there.
    """

    max_absolute: Share
    relative_l2: Share
    peak: Share
    cosine: float
    psnr_db: float | None
    worst_index: tuple[int, ...]
    worst_reference: float
    worst_candidate: float


class ToleranceRecord(Record):
    """What a comparison may reach; None is not held to anything.

    ``relative_l2``, ``peak`` and ``lpips`` are upper limits, ``psnr_db`` and ``ssim`` lower ones. ``measured`` is what
    the limits came from, by the same names, and ``reason`` why they are what they are.
    """

    relative_l2: Share | None = None
    peak: Share | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: Share | None = None
    measured: dict[str, float] = Field(default_factory=dict)
    reason: str


class OutputResult(Record):
    """One output of one case. ``metrics`` is None where none could be computed; ``reason`` is "" when it passed."""

    output: str
    metrics: Metrics | None
    tolerance: ToleranceRecord | None
    outcome: Outcome
    reason: str


class ComponentCase(Record):
    """One set of inputs, named by what it is: ``label`` is "early, batch 2"."""

    label: str
    batch: int = Field(ge=1)
    outputs: tuple[OutputResult, ...]


class ProxyResult(Record):
    """A stand-in for a component that cannot run here. ``label`` says what ran, ``note`` what that does not show."""

    label: str
    note: str
    outcome: Outcome
    cases: tuple[ComponentCase, ...]


class Departure(Record):
    """The first tensor of a component, in the order of computation, that departs from the reference."""

    tensor: str
    node: str
    operator: str
    source_module: str
    metrics: Metrics | None


class ComponentResult(Record):
    """A component over all its cases. ``reason`` says why it is unverified, or which case failed first."""

    component: ComponentName
    backend: str
    precision: Precision
    outcome: Outcome
    reason: str
    cases: tuple[ComponentCase, ...]
    proxies: tuple[ProxyResult, ...] = ()
    departure: Departure | None = None


class TrajectoryResult(Record):
    """Latents after each step against the reference's, from the same noise.

    ``relative_l2[i]`` is the error after step i, counted from 0; it ends at the first step that is not finite.
    ``grows_at`` is the step where the error rises by the largest factor, ``first_over`` the first over tolerance.
    """

    prompt: str
    seed: int
    steps: int = Field(ge=1)
    relative_l2: tuple[Share, ...]
    grows_at: int | None
    first_over: int | None
    tolerance: ToleranceRecord | None
    outcome: Outcome
    reason: str = ""


class PictureResult(Record):
    """One picture against the reference's. The verdicts say whether a picture obeys its prompt, where that is known."""

    prompt: str
    seed: int
    psnr_db: float | None
    ssim: float | None
    lpips: float | None
    reference_verdict: str | None
    candidate_verdict: str | None
    tolerance: ToleranceRecord | None
    outcome: Outcome
    reason: str = ""


class FaultResult(Record):
    """A planted fault: whether the comparison failed for it, and which part it blamed."""

    name: str
    found: bool
    expected_component: str
    blamed_component: str | None


class Compared(Record):
    """The checkpoint that was the reference. ``mismatch``: it is not the one that the candidate was made from."""

    name: str
    digest: Digest
    mismatch: bool


class SubjectSource(Record):
    """The checkpoint that the candidate was made from, as its manifest says."""

    name: str
    digest: Digest


class Engines(Record):
    """The engine set that was compared."""

    key: Digest
    digest: Digest


class FigureChange(Record):
    """A figure or an outcome that is not what it was. ``worse`` is None where neither of the two is worse.

    ``what`` says of what, as "unet, early, batch 2, out_sample"; ``figure`` is the field's name. Steps are counted from
    1 here.
    """

    what: str
    figure: str
    before: float | str | None
    after: float | str | None
    worse: bool | None


class ChangeReport(Record):
    """What moved since an earlier comparison, made at ``created``."""

    created: str
    moved: tuple[FigureChange, ...]


class Comparison(Record):
    """``comparison.json``: everything that one run of ``sdrt compare`` found. ``created`` is ISO 8601, UTC."""

    schema_version: Literal[1]
    sdrt: str
    outcome: Outcome
    checkpoint: SubjectSource
    compared_with: Compared
    bundle_digest: Digest
    engines: Engines | None
    backend: str
    precision: Precision
    steps: int = Field(ge=1)
    guidance_scale: float
    components: tuple[ComponentResult, ...]
    trajectories: tuple[TrajectoryResult, ...]
    pictures: tuple[PictureResult, ...]
    environment: dict[str, str]
    created: str
    against: ChangeReport | None = None


def verdict(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of several: failed if one failed, unverified if none passed (or there is none), passed otherwise."""
    found = set(outcomes)
    if "failed" in found:
        return "failed"
    return "passed" if "passed" in found else "unverified"
