"""Records of ``sdrt tune`` in the store: the fastest way to run a bundle on this machine."""

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
#: Libraries that decide the speed of a backend; a record does not count after their versions have changed.
LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx")
Loop = Literal["fused", "plain"]


class Trial(Record):
    """One way to run a bundle, and its result.

    Attributes:
        backend: The backend.
        precision: Precision of the engines.
        batch: Batch size of the engines, in pictures; None for any.
        threads: CPU threads.
        loop: "fused" if denoise_step runs a guided step, else "plain".
        seconds: Seconds of a request in each round; empty if it was not measured.
        times_as_long: Median over the rounds of its time divided by that of the best way until then; None for the
            first.
        kept: Whether it became the best way.
        accurate: Whether its pictures match the checkpoint's; None if it differs only in threads from one that does.
        why: The reason, in one line.
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
        """The way in one line."""
        batch = "any batch" if self.batch is None else f"batch {self.batch}"
        return f"{self.backend} {self.precision}, {self.loop} loop, {batch}, {self.threads} threads"


class TuneRecord(Record):
    """All trials of a bundle on a machine, for requests of ``pictures`` pictures; the last one kept is the best."""

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
        """The best way to run the bundle; None if no way was accurate."""
        kept = [trial for trial in self.trials if trial.kept]
        return kept[-1] if kept else None

    @property
    def reason(self) -> str:
        """The reason for the choice, in one line."""
        best = self.best
        return "no candidate is accurate" if best is None else f"tuned here on {self.created[:10]}: {best.why}"


def machine_key() -> dict[str, str]:
    """Return the properties of this machine and its libraries that decide the speed of engines."""
    facts = {"processor": processor_name(), "cpus": str(usable_cpus()), "features": " ".join(cpu_features())}
    try:
        driver = nvidia.driver()
        facts["gpu"] = f"{driver.version}: " + ", ".join(gpu.name for gpu in driver.gpus)
    except BackendUnavailableError:
        facts["gpu"] = "none"
    return facts | package_versions(LIBRARIES)


def record_path(root: Path, bundle_digest: str) -> Path:
    """Return the path in a store of the record of a bundle on this machine.

    Args:
        root: The store's folder.
        bundle_digest: Digest of the fp32 bundle, from which all others are derived.
    """
    machine = sha256_bytes(canonical_json(machine_key()))
    return root / FOLDER / f"{bundle_digest[:16]}-{machine[:16]}.json"


def find_record(root: Path, bundle_digest: str) -> TuneRecord | None:
    """Return the record of a bundle on this machine; None if there is none.

    Raises:
        ArtefactError: The record is malformed, or from a newer sdrt.
    """
    path = record_path(root, bundle_digest)
    if not path.exists():
        return None
    hint = f"remove {path}, or run sdrt tune again"
    record = read_document(path, TuneRecord, limit_bytes=LIMIT_BYTES, newest=SCHEMA_VERSION, hint=hint)
    # The file name holds only the first 16 digits of each digest.
    return record if record.bundle_digest == bundle_digest and record.machine == machine_key() else None


def write_record(root: Path, record: TuneRecord) -> Path:
    """Write a record to a store, replacing an earlier one.

    Raises:
        ResourceError: The store cannot be written.
    """
    path = record_path(root, record.bundle_digest)
    with disk_errors(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, canonical_json(record.model_dump(mode="json")))
    return path
