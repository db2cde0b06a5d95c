"""What ``sdrt tune`` found to be fastest here: its record, kept in the store, and the choice that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sdrt.artefacts.engine_set import BackendName
from sdrt.artefacts.manifest import Digest, Precision, Record, read_document
from sdrt.errors import BackendUnavailableError
from sdrt.files import canonical_json, disk_errors, sha256_bytes, write_atomically
from sdrt.machine import nvidia
from sdrt.machine.cpu import cpu_features, processor_name, usable_cpus
from sdrt.machine.packages import package_versions

SCHEMA_VERSION = 1
LIMIT_BYTES = 4 << 20
FOLDER = "tuned"
#: Libraries that decide how fast a backend is; after another one is installed, what was measured says nothing.
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
Loop = Literal["fused", "plain"]


class Trial(Record):
    """One way to run a bundle, and how it did.

    Attributes:
        batch: Pictures at once that its engines are built for; None takes any number.
        loop: fused where denoise_step runs a guided step.
        seconds: A request's, in the order of the rounds; empty where it was not measured.
        times_as_long: As the best way known then, round by round, the median; None for the first.
        kept: Whether it became the best way known.
        accurate: Whether it drew what the checkpoint draws; None where only threads differ from one that did.
        why: In a line.
    """

    backend: BackendName
    precision: Precision
    batch: Annotated[int, Field(ge=1)] | None
    threads: int = Field(ge=1)
    loop: Loop
    seconds: tuple[float, ...] = ()
    times_as_long: float | None = None
    kept: bool = False
    accurate: bool | None = None
    why: str

    @property
    def name(self) -> str:
        """The way in a line."""
        batch = "any batch" if self.batch is None else f"batch {self.batch}"
        return f"{self.backend} {self.precision}, {self.loop} loop, {batch}, {self.threads} threads"


class TuneRecord(Record):
    """Everything that was tried for a bundle on a machine, for requests of so many pictures; the last kept is best."""

    schema_version: Literal[1]
    sdrt: str
    created: str
    machine: dict[str, str]
    checkpoint: str
    bundle_digest: Digest
    pictures: int = Field(ge=1)
    steps: int = Field(ge=1)
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The way to run it; None where no way was accurate."""
        kept = [trial for trial in self.trials if trial.kept]
        return kept[-1] if kept else None

    @property
    def reason(self) -> str:
        """Why, in a line."""
        best = self.best
        return (
            "nothing that was tried is accurate" if best is None else f"tuned here on {self.created[:10]}: {best.why}"
        )


def machine_key() -> dict[str, str]:
    """What of this machine and its libraries decides how fast engines are."""
    facts = {"processor": processor_name(), "cpus": str(usable_cpus()), "features": " ".join(cpu_features())}
    try:
        driver = nvidia.driver()
        facts["gpu"] = f"{driver.version}: " + ", ".join(gpu.name for gpu in driver.gpus)
    except BackendUnavailableError:
        facts["gpu"] = "none"
    return facts | package_versions(LIBRARIES)


def record_path(root: Path, bundle_digest: str) -> Path:
    """Where the record of a bundle on this machine lies in a store.

    Args:
        root: The store's folder.
        bundle_digest: Of the bundle in fp32, from which all others come.
    """
    machine = sha256_bytes(canonical_json(machine_key()))
    return root / FOLDER / f"{bundle_digest[:16]}-{machine[:16]}.json"


def find_record(root: Path, bundle_digest: str) -> TuneRecord | None:
    """The record of a bundle on this machine; None where there is none.

    Raises:
        ArtefactError: It is malformed, or from a newer sdrt.
    """
    path = record_path(root, bundle_digest)
    if not path.exists():
        return None
    hint = f"remove {path}, or run sdrt tune again"
    record = read_document(path, TuneRecord, limit_bytes=LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)
    # The name holds half of each digest only.
    return record if record.bundle_digest == bundle_digest and record.machine == machine_key() else None


def write_record(root: Path, record: TuneRecord) -> Path:
    """Keep a record in a store, in place of an earlier one.

    Raises:
        ResourceError: The store cannot be written.
    """
    path = record_path(root, record.bundle_digest)
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, canonical_json(record.model_dump(mode="json")))
    return path
