"""The key of a stored engine set: everything that can change the result of a build."""

from __future__ import annotations

from sdrt.artefacts.engine_set import BackendName, BatchRange
from sdrt.artefacts.manifest import ComponentName, Digest, Precision, Record
from sdrt.engines.recipe import Recipe
from sdrt.files import canonical_json, sha256_bytes


class BuildKey(Record):
    """Everything that an engine set depends on. Builds with equal keys are interchangeable.

    Attributes:
        backend: Name of the backend.
        builder: Version of the builder's own code.
        versions: Versions of the libraries, by package.
        host: Properties of this machine that the machine which opens the engines must share.
        machine: Other properties of this machine that change the engines.
        bundle: SHA-256 of the bundle's manifest, which covers every graph, weight, tokenizer and config.
        components: Names of the components, sorted.
        precision: Precision of the set.
        component_precision: Precision of each component.
        batch: Pictures at once; None if the batch is free or the recipe sets it.
        options: Options of the backend, as "component.option".
        recipe: TensorRT's build settings; None for other backends.
    """

    backend: BackendName
    builder: int
    versions: dict[str, str]
    host: dict[str, str]
    machine: dict[str, str]
    bundle: Digest
    components: tuple[ComponentName, ...]
    precision: Precision
    component_precision: dict[ComponentName, Precision]
    batch: BatchRange | None
    options: dict[str, str]
    recipe: Recipe | None

    @property
    def digest(self) -> str:
        """SHA-256 of the key, as 64 hex digits."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))
