"""The name under which an engine set is stored: a digest of everything that can change what a build makes."""

from __future__ import annotations

from sdrt.artefacts.engine_set import BackendName, BatchRange
from sdrt.artefacts.manifest import ComponentName, Digest, Precision, Record
from sdrt.engines.recipe import Recipe
from sdrt.files import canonical_json, sha256_bytes


class BuildKey(Record):
    """All that an engine set depends on. Two builds whose keys are equal may stand in for each other.

    ``bundle`` is the digest of the bundle's manifest: it covers every graph, weight, tokenizer and config.
    ``builder`` counts changes of our own code that change what it makes; ``versions`` are the libraries'. ``host`` is
    what of this machine goes into the engines, and must be there where they are opened; ``machine`` what else of it
    decides how they come out. ``options`` are the backend's own, ``recipe`` how TensorRT builds.
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
        """The key, as 64 hex digits."""
        return sha256_bytes(canonical_json(self.model_dump(mode="json")))
