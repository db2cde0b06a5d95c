"""What a benchmark found, as it is written to JSON: every measured value, and what it was measured on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sdrt.artefacts.manifest import ComponentName, Digest, Precision, Record

SCHEMA_VERSION = 1
Figure = Literal["total", "unet_step", "cold_first_step", "cold_picture"]


class Sample(Record):
    """One figure measured again and again. ``values`` stand in the order of the rounds."""

    values: tuple[float, ...] = Field(min_length=1)
    min: float
    p50: float
    p90: float


class ComponentBuild(Record):
    """How one component was built."""

    component: ComponentName
    precision: Precision
    seconds: float
    size_bytes: int
    peak_memory_bytes: int | None


class Build(Record):
    """What stands before the first run.

    ``export_s`` and ``build_s`` were measured now, where asked for: the commands that make the bundle from the
    checkpoint, and the engines from the bundle. ``components`` are what the engines' manifest remembers.
    """

    export_s: float | None = None
    build_s: float | None = None
    components: tuple[ComponentBuild, ...] = ()


class Cold(Record):
    """A process of its own for each value, in seconds from its start.

    Until libraries are imported, everything is loaded, the first step has ended, and the picture is written. Files come
    from the system's cache, not from the disk. sdrt opens each engine when its turn comes and lets go of it when its
    work is done, as ``sdrt denoise`` does. ``peak_memory_bytes`` is the most that the process held over a request.
    """

    imported: Sample
    loaded: Sample
    first_step: Sample | None
    picture: Sample
    peak_memory_bytes: int | None = None


class Warm(Record):
    """One batch in a process that is warm: seconds in all, by stage, and of one step of the whole batch.

    ``peak_memory_bytes`` is the most that the process held during a run, all it has loaded included.
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
    """One way to make the pictures. ``problem`` says why it was not, or not to the end, measured; "" where it was.

    ``how`` is its documented fast path in a line; ``psnr_db`` how near its first picture is to sdrt's, in the same
    precision if there is one: None where it is equal or cannot be compared, ``equal_picture`` tells the two apart.
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
    """How many times as long as ``of`` a peer took, round by round: above 1, ``of`` is faster."""

    of: str
    peer: str
    figure: Figure
    batch: int
    equal_precision: bool
    sample: Sample
    max: float


class Ceiling(Record):
    """The machine's limit in one precision, measured in each round: a matrix product, by the fastest library here."""

    precision: Precision
    gflops: Sample
    library: str


class Point(Record):
    """One component of one contender on the roofline.

    ``flops`` are those of the plain model, guidance included: work that is saved counts as speed. ``least_bytes`` is
    what has to move at least: weights once a run, inputs and outputs. ``share`` is of the ceiling in the same round.
    """

    contender: str
    component: ComponentName
    batch: int
    precision: Precision
    flops: int
    least_bytes: int
    gflops: float
    share: Sample | None


class Move(Record):
    """A figure that an earlier benchmark has too.

    ``factor`` is after over before as measured, ``adjusted`` with the change of the machine's own ceiling taken out.
    ``spread`` is the larger relative spread (90% over minimum) of the two; slower, or faster, is what goes beyond.
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


class AgainstResult(Record):
    """What moved since an earlier benchmark. ``remarks`` say what makes the two hard to compare."""

    created: str
    remarks: tuple[str, ...]
    moves: tuple[Move, ...]


class Settings(Record):
    """How it was measured; equal for every contender."""

    steps: int = Field(ge=1)
    guidance_scale: float
    threads: int = Field(ge=1)
    batches: tuple[int, ...]
    rounds: int = Field(ge=1)
    cold_rounds: int = Field(ge=0)
    prompt: str


class Bench(Record):
    """A whole benchmark. ``command`` repeats it; "" where it was not run by one."""

    schema_version: Literal[1]
    sdrt: str
    created: str
    command: str = ""
    checkpoint: str
    checkpoint_digest: Digest
    bundle_digest: Digest
    settings: Settings
    machine: dict[str, str]
    versions: dict[str, str]
    contenders: tuple[ContenderResult, ...]
    ratios: tuple[Ratio, ...]
    ceilings: tuple[Ceiling, ...]
    copy_bytes_a_second: Sample | None
    points: tuple[Point, ...]
    against: AgainstResult | None = None
