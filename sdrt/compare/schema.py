"""Schema of ``comparison.json``: every number, its tolerance, and the verdict."""

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
    """Metrics of a candidate tensor against the reference; both are finite and of the same shape.

    ``relative_l2`` is ||candidate - reference|| / ||reference||, ``peak`` the largest absolute difference over the
    largest absolute value of the reference, ``psnr_db`` the peak signal-to-noise ratio over the reference's range,
    None if the two are equal. ``worst_index`` is the index of the largest absolute difference, ``worst_reference``
    and ``worst_candidate`` are the values there.
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
    """Limits of a comparison; None is no limit.

    ``relative_l2``, ``peak`` and ``lpips`` are upper limits, ``psnr_db`` and ``ssim`` lower ones. ``measured`` has the
    measurements that the limits were set from, by the same names, and ``reason`` explains the limits.
    """

    relative_l2: Share | None = None
    peak: Share | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    lpips: Share | None = None
    measured: dict[str, float] = Field(default_factory=dict)
    reason: str


class OutputResult(Record):
    """One output of one case. ``metrics`` is None if none could be computed; ``reason`` is "" if it passed."""

    output: str
    metrics: Metrics | None
    tolerance: ToleranceRecord | None
    outcome: Outcome
    reason: str


class ComponentCase(Record):
    """One set of inputs and the outputs on it. ``label`` describes the inputs, as "early, batch 2"."""

    label: str
    batch: int = Field(ge=1)
    outputs: tuple[OutputResult, ...]


class ProxyResult(Record):
    """A stand-in for a component that cannot run here. ``label`` says what ran, ``note`` what it does not show."""

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
    """A component over all its cases. ``reason`` says why it is unverified, or which case failed first, and why."""

    component: ComponentName
    backend: str
    precision: Precision
    outcome: Outcome
    reason: str
    cases: tuple[ComponentCase, ...]
    proxies: tuple[ProxyResult, ...] = ()
    departure: Departure | None = None


class TrajectoryResult(Record):
    """Latents after each step compared with the reference's, from the same noise.

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
    """A picture compared with the reference's. The verdicts say whether each shows its prompt; None if unknown."""

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
    """A planted fault: whether the comparison found it, and which component it blamed."""

    name: str
    found: bool
    expected_component: str
    blamed_component: str | None


class Compared(Record):
    """The reference's checkpoint. ``mismatch``: the candidate was made from another one."""

    name: str
    digest: Digest
    mismatch: bool


class SubjectSource(Record):
    """The checkpoint that the candidate was made from, according to its manifest."""

    name: str
    digest: Digest


class Engines(Record):
    """The engine set that was compared."""

    key: Digest
    digest: Digest


class FigureChange(Record):
    """A changed figure or outcome. ``worse`` is None if the two values cannot be ranked.

    ``what`` is the subject, as "unet, early, batch 2, out_sample"; ``figure`` is the field's name. Steps are counted
    from 1 here.
    """

    what: str
    figure: str
    before: float | str | None
    after: float | str | None
    worse: bool | None


class ChangeReport(Record):
    """Changes since an earlier comparison, which was made at ``created``."""

    created: str
    moved: tuple[FigureChange, ...]


class Comparison(Record):
    """``comparison.json``: the results of one run of ``sdrt compare``. ``created`` is ISO 8601, UTC."""

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
    """Combine outcomes: failed if any failed, unverified if none passed or there are none, else passed."""
    found = set(outcomes)
    if "failed" in found:
        return "failed"
    return "passed" if "passed" in found else "unverified"
