"""Schema of bench.json: every measured value of a benchmark, and the machine that it was measured on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdrt.artefacts.manifest import ComponentName, Digest, Precision, Record

SCHEMA_VERSION = 1
Figure = Literal["total", "unet_step", "cold_first_step", "cold_picture"]


class Sample(Record):
    """Repeated measurements of one figure. ``values`` are in the order of the rounds."""

    values: tuple[float, ...] = Field(min_length=1)
    min: float
    p50: float
    p90: float


class ComponentBuild(Record):
    """Build report of one component."""

    component: ComponentName
    precision: Precision
    seconds: float
    size_bytes: int
    peak_memory_bytes: int | None


class Build(Record):
    """Cost of export and build.

    ``export_s`` and ``build_s`` are the times of ``sdrt export`` and ``sdrt build``, measured in the benchmark if build
    times are requested. ``components`` are read from the engines' manifest.
    """

    export_s: float | None = None
    build_s: float | None = None
    components: tuple[ComponentBuild, ...] = ()


class Cold(Record):
    """Cold starts: seconds from the start of a process, with a new process for each value.

    The events are: libraries imported, model loaded, first step ended, picture written. Files come from the system's
    cache, not from the disk. sdrt opens each engine when it is needed and closes it afterwards, as ``sdrt denoise``
    does. ``peak_memory_bytes`` is the peak memory of the process during the request.
    """

    imported: Sample
    loaded: Sample
    first_step: Sample | None
    picture: Sample
    peak_memory_bytes: int | None = None


class Warm(Record):
    """Warm runs of one batch: seconds in total, by stage, and of one step of the whole batch.

    ``peak_memory_bytes`` is the peak memory of the process during a run, the loaded model included.
    """

    batch: int = Field(ge=1)
    total: Sample
    unet_step: Sample
    text_encoder: Sample | None
    unet: Sample
    vae_decoder: Sample | None
    pictures_a_minute: float
    peak_memory_bytes: int | None
    device_bytes: int | None


class ContenderResult(Record):
    """Figures of one contender.

    ``problem`` is the reason for which its measurement is missing or incomplete; "" if it is complete. ``how`` is its
    documented fast path in a line. ``psnr_db`` compares its first picture with sdrt's, in the same precision if
    possible; it is None if the pictures are equal or cannot be compared, which ``equal_picture`` tells apart.
    """

    name: str
    ours: bool
    backend: str
    precision: Precision
    threads: int
    scheduler: str
    how: str
    problem: str = ""
    remedy: str = ""
    prepare_s: float | None = None
    build: Build | None = None
    cold: Cold | None = None
    warm: tuple[Warm, ...] = ()
    psnr_db: float | None = None
    equal_picture: bool = False


class Ratio(Record):
    """Time of ``peer`` over time of ``of``, round by round: above 1, ``of`` is faster."""

    of: str
    peer: str
    figure: Figure
    batch: int
    equal_precision: bool
    sample: Sample
    max: float


class Ceiling(Record):
    """The machine's ceiling in one precision, measured in each round: a matrix product by the fastest library here."""

    precision: Precision
    gflops: Sample
    library: str


class Point(Record):
    """One component of one contender on the roofline.

    ``flops`` are those of the plain model with guidance, so that saved work counts as speed. ``least_bytes`` are the
    weights, inputs and outputs of a run. ``share`` is relative to the ceiling in the same round.
    """

    contender: str
    component: ComponentName
    batch: int
    precision: Precision
    flops: int
    least_bytes: int
    gflops: float
    share: Sample | None


class FigureChange(Record):
    """Change of one figure since an earlier benchmark.

    ``factor`` is after over before as measured; ``adjusted`` is corrected for the change of the machine's ceiling.
    ``spread`` is the larger of the two relative spreads (90th percentile minus minimum, over median); a figure is
    slower or faster if it changed by more.
    """

    contender: str
    figure: Figure
    batch: int
    before: float
    after: float
    factor: float
    adjusted: float
    spread: float
    verdict: Literal["slower", "faster", "same"]


class BenchChanges(Record):
    """Changes since an earlier benchmark. ``remarks`` name other differences, which make the two hard to compare."""

    created: str
    remarks: tuple[str, ...]
    moves: tuple[FigureChange, ...]


class BenchSettings(Record):
    """Settings of a benchmark; equal for every contender."""

    steps: int = Field(ge=1)
    guidance_scale: float
    threads: int = Field(ge=1)
    batches: tuple[int, ...]
    rounds: int = Field(ge=1)
    cold_rounds: int = Field(ge=0)
    prompt: str


class Bench(Record):
    """A whole benchmark. ``command`` is the command line that repeats it; "" if it was run from Python."""

    schema_version: Literal[1]
    sdrt: str
    created: str
    command: str = ""
    checkpoint: str
    checkpoint_digest: Digest
    bundle_digest: Digest
    settings: BenchSettings
    machine: dict[str, str]
    versions: dict[str, str]
    contenders: tuple[ContenderResult, ...]
    ratios: tuple[Ratio, ...]
    ceilings: tuple[Ceiling, ...]
    copy_bytes_a_second: Sample | None
    points: tuple[Point, ...]
    against: BenchChanges | None = None
